import os
import subprocess
import sys
from pathlib import Path

import pytest

from bert_of_theseus.files import whole_file, whole_files, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "results.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["results.txt"]


def test_a_file_whose_writing_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "results.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["results.txt"]


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "new" / "checkpoint-1"
    with whole_folder(path) as temporary:
        (temporary / "config.json").write_text("{}")
        assert not path.exists()
    assert names(tmp_path) == ["new/checkpoint-1/config.json"]


def test_in_a_folder_that_exists_files_are_replaced_and_others_stay(tmp_path):
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with whole_files(tmp_path) as temporary:
        (temporary / "config.json").write_text("new")
        (temporary / "model.safetensors").write_text("weights")
    assert names(tmp_path) == ["config.json", "model.safetensors", "notes.txt"]
    assert (tmp_path / "config.json").read_text() == "new" and (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_whose_writing_fails_leaves_things_as_they_were(tmp_path, exists):
    path = tmp_path / "checkpoint-1"
    if exists:
        path.mkdir()
        (path / "config.json").write_text("old")
    before = names(tmp_path)
    with pytest.raises(RuntimeError), whole_folder(path) as temporary:
        (temporary / "config.json").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == before and path.exists() == exists
    assert not exists or (path / "config.json").read_text() == "old"


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    code = "import os, sys; os.umask(0o022)\nfrom bert_of_theseus.files import whole_folder\n"
    code += "with whole_folder(sys.argv[1]) as t: (t / 'config.json').write_text('')"
    subprocess.run([sys.executable, "-c", code, tmp_path / "c"], cwd=Path(__file__).parents[1], check=True)
    assert os.stat(tmp_path / "c").st_mode & 0o777 == 0o755
    assert os.stat(tmp_path / "c" / "config.json").st_mode & 0o777 == 0o644
