"""quickstart.sh: what it refuses, and (slow) a whole call in a fresh copy of the project."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import save_bert

ROOT = Path(__file__).parents[1]


def quickstart(
    *args: object, root: Path = ROOT, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name != "GLUE_DIR"}
    command = ["bash", str(root / "scripts" / "quickstart.sh"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        (["--task", "SQuAD"], {}, "--task SQuAD: there are CoLA, SST-2, MRPC"),
        (["--task"], {}, "--task needs a value"),
        (["--epochs", "3"], {}, "unknown argument --epochs"),
        (["--train_file", "a.csv"], {}, "--train_file a.csv: there is no such file"),
        (["--train_file", __file__], {}, "--validation_file is missing"),
        (["--train_file", __file__, "--task", "RTE"], {}, "--task and --demo are for GLUE, not for --train_file"),
        (["--text_column_names", "a"], {}, "--text_column_names is for a --train_file"),
        ([], {"GLUE_DIR": "/nowhere"}, "there is no /nowhere/STS-B/train.tsv"),
        (["--task", "cola"], {"GLUE_DIR": "/nowhere"}, "there is no /nowhere/CoLA/train.tsv"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_and_nothing_is_written(tmp_path, arguments, environment, reason):
    run = quickstart(*arguments, cwd=tmp_path, **environment)
    assert not [*tmp_path.iterdir()]
    assert run.returncode == 1 and reason in run.stderr and len(run.stderr.splitlines()) == 1


def test_help_says_where_the_data_come_from():
    run = quickstart("--help")
    assert run.returncode == 0 and "GLUE_DIR" in run.stdout and "demo set" in run.stdout


@pytest.mark.slow
def test_files_of_ones_own_from_a_fresh_copy_to_the_table(tmp_path):
    hidden = shutil.ignore_patterns(".*", "__pycache__", "quickstart")
    root = Path(shutil.copytree(ROOT, tmp_path / "project", ignore=hidden))
    (tmp_path / "the data").mkdir()
    for name, n_rows in (("train", 40), ("dev", 12)):
        rows = [f'"a {["good", "bad"][i % 2]} film",{["Yes", "No"][i % 2]}' for i in range(n_rows)]
        (tmp_path / "the data" / f"{name}.csv").write_text("\n".join(["text,seen", *rows]) + "\n")
    model = save_bert(tmp_path / "tiny", max_position_embeddings=130)
    flags = ["--train_file", "the data/train.csv", "--validation_file", "the data/dev.csv", "--model", model]
    flags += ["--text_column_names", "text", "--label_column_name", "seen", "--output_dir", "out"]
    command = ["bash", str(root / "scripts" / "quickstart.sh"), *map(str, flags)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, predecessor, successor = done.stdout.splitlines()[-3:]
    assert head.startswith("the data/dev on c") and "macro_f1" in head
    assert predecessor.startswith("predecessor") and successor.startswith("successor")
    assert "epochs: 10" in done.stderr and (tmp_path / "out" / "the data-train-tiny" / "successor").is_dir()


@pytest.mark.slow
def test_a_whole_call_and_a_second_one_that_reuses_all(tmp_path):
    hidden = shutil.ignore_patterns(".*", "__pycache__", "quickstart")
    root = Path(shutil.copytree(ROOT, tmp_path / "project", ignore=hidden))
    # The tiny model's own dictionary knows none of the demo set's words; all that counts here is that it runs.
    model = save_bert(tmp_path / "tiny", max_position_embeddings=130)
    flags = ["--demo", "--task", "RTE", "--model", model, "--output_dir", tmp_path / "out"]
    first = quickstart(*flags, root=root)
    assert first.returncode == 0, first.stderr
    assert "DEMO SET" in first.stderr
    head, predecessor, successor = first.stdout.splitlines()[-3:]
    assert head.startswith("GLUE RTE on c")
    assert predecessor.startswith("predecessor") and successor.startswith("successor")
    second = quickstart(*flags, root=root)
    assert second.returncode == 0 and second.stderr.count("nothing is left to train") == 2
