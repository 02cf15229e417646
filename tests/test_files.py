import os
import subprocess
import sys
from pathlib import Path

import pytest

from bert_of_theseus import files
from bert_of_theseus.files import remove_folder, tidy_up, whole_file, whole_files, whole_folder


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


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_that_exists_is_replaced_as_a_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:  # a file system, or a system, that cannot let two names change places
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path = tmp_path / "checkpoint-best"
    path.mkdir()
    (path / "config.json").write_text("old")
    (path / "old.txt").write_text("old")
    with whole_folder(path) as temporary:
        (temporary / "config.json").write_text("new")
        assert names(path) == ["config.json", "old.txt"] and (path / "config.json").read_text() == "old"
    assert names(tmp_path) == ["checkpoint-best/config.json"] and (path / "config.json").read_text() == "new"


def test_two_names_change_places_on_linux(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    if files._exchange(tmp_path / "a", tmp_path / "b"):
        assert names(tmp_path) == ["a/b", "b/a"]
    else:
        assert sys.platform != "linux" and names(tmp_path) == ["a/a", "b/b"]
    assert not files._exchange(tmp_path / "a", tmp_path / "missing")


def test_what_a_killed_process_left_is_put_back_or_removed(tmp_path):
    for name in (
        ".checkpoint-best.replaced",
        ".checkpoint-5.replaced",
        "checkpoint-5",
        ".checkpoint-7.0123456789abcdef.tmp",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    (tmp_path / ".run.json.0123456789abcdef.tmp").write_text("{")
    (tmp_path / ".bashrc").write_text("mine")
    tidy_up(tmp_path)
    assert names(tmp_path) == [".bashrc", "checkpoint-5/config.json", "checkpoint-best/config.json"]
    assert (tmp_path / "checkpoint-best" / "config.json").read_text() == ".checkpoint-best.replaced"
    assert (tmp_path / "checkpoint-5" / "config.json").read_text() == "checkpoint-5"


def test_old_leftovers_of_a_file_are_removed_by_who_writes_it_next(tmp_path):
    old, young, other = (
        tmp_path / f".{name}.tmp" for name in ("a.npz.0123456789abcdef", "a.npz.1123456789abcdef", "b.npz.01")
    )
    for path in (old, young, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, (0, 0))
    with whole_file(tmp_path / "a.npz") as temporary:
        temporary.write_text("")
    assert set(names(tmp_path)) == {"a.npz", young.name, other.name}


def test_a_folder_that_is_removed_is_never_seen_in_part(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint-5"
    path.mkdir()
    (path / "config.json").write_text("")
    seen = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda folder, **_: seen.append((folder.name, path.exists())))
    remove_folder(path)
    ((name, existed),) = seen
    assert files.TEMPORARY.fullmatch(name) and not existed


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


@pytest.mark.parametrize("kind", ["whole_folder", "whole_files"])
def test_files_can_be_read_by_whom_the_umask_lets(tmp_path, kind):
    code = f"""
import os, sys
os.umask(0o022)
from bert_of_theseus.files import {kind}
with {kind}(sys.argv[1]) as folder:
    (folder / "config.json").write_text("")
    (folder / "config.json").chmod(0o600)  # as safetensors does
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "c"], cwd=Path(__file__).parents[1], check=True)
    assert os.stat(tmp_path / "c").st_mode & 0o777 == 0o755
    assert os.stat(tmp_path / "c" / "config.json").st_mode & 0o777 == 0o644
