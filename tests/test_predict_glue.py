"""Predictions as the leaderboard takes them, from real small models on the demo set."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import make_demo_glue
import predict_glue
import pytest
import torch
from conftest import save_bert, save_roberta
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from glue_processors import TASKS, find_task, read_examples

ROOT = Path(__file__).parents[1]
N_ROWS = 146  # of each demo test set: as many as WNLI's has, so that this one is complete


def run_as_command(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/predict_glue.py", *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def predict(*args: object) -> None:
    predict_glue.main(predict_glue.parse_args([str(a) for a in args]))


def refusal(capsys, *args: object) -> str:
    """The one line with which these arguments are refused."""
    with pytest.raises(SystemExit) as exit_:
        predict(*args)
    assert exit_.value.code != 0
    said = capsys.readouterr().err + (exit_.value.code if isinstance(exit_.value.code, str) else "")
    lines = [line for line in said.splitlines() if not line.startswith(tuple(predict_glue.SUBMITTED))]
    assert len(lines) == 1, said
    return lines[0]


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    sizes = ["--train_rows", "1", "--dev_rows", "1", "--test_rows", str(N_ROWS)]
    script = Path(make_demo_glue.__file__)
    subprocess.run([sys.executable, str(script), str(folder), *sizes], check=True, capture_output=True)
    # Sentences of every length, so that batches by length are not in the file's order.
    path = folder / "MRPC" / "test.tsv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(row + " good" * (i * 7 % 40) for i, row in enumerate(rows))]) + "\n")
    return folder


def save_run(folder: Path, task_name: str, **labels) -> Path:
    """A run's folder: a random model with the task's head, and the run.json that a run leaves."""
    task = find_task(task_name)
    save_bert(folder, num_labels=task.num_labels, n_layer=2, **labels)
    record = {"task": task.name, "arguments": {"max_seq_length": 48}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def read_predictions(path: Path) -> list[str]:
    header, *rows = path.read_text().splitlines()
    assert header == "index\tprediction"
    assert [row.split("\t")[0] for row in rows] == [str(i) for i in range(len(rows))]
    return [row.split("\t")[1] for row in rows]


def spread(folder: Path, glue: Path, task_name: str, factor: float = 1.0, centre: float = 0.0) -> Path:
    """Change the head so that the outputs for the test set are `factor` times as far apart, around `centre`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    outputs = torch.stack(logits_one_by_one(folder, glue, task_name, 48))
    with torch.no_grad():
        head = getattr(model.classifier, "out_proj", model.classifier)
        head.weight.mul_(factor)
        head.bias.copy_(centre - factor * (outputs.mean(0) - head.bias))
    model.save_pretrained(folder)
    return folder


def one_by_one(model_folder: Path, glue: Path, task_name: str, max_seq_length: int = 48) -> list[int]:
    """The strongest output for each test row, computed without batches."""
    return [int(logits.argmax()) for logits in logits_one_by_one(model_folder, glue, task_name, max_seq_length)]


def logits_one_by_one(model_folder: Path, glue: Path, task_name: str, max_seq_length: int) -> list[torch.Tensor]:
    task = find_task(task_name)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    examples = read_examples(task, glue / task.folder, "test")
    with torch.no_grad():
        return [
            model(**tokenizer(a, b, truncation=True, max_length=max_seq_length, return_tensors="pt")).logits[0]
            for a, b in zip(examples.first, examples.second or [None] * N_ROWS, strict=True)
        ]


@pytest.mark.parametrize("save", [save_bert, save_roberta])
def test_rows_stay_in_file_order_whatever_their_length(save, glue, tmp_path):
    model = spread(save(tmp_path / "model"), glue, "mrpc")
    fixed = ["--task_name", "mrpc", "--data_dir", glue / "MRPC", "--max_seq_length", 48]
    predict("--model_name_or_path", model, *fixed, "--output_dir", tmp_path / "out", "--per_gpu_eval_batch_size", 7)
    predictions = read_predictions(tmp_path / "out" / "MRPC.tsv")
    expected = [str(output) for output in one_by_one(model, glue, "mrpc")]
    assert predictions == expected
    assert 0 < expected.count("1") < N_ROWS


def test_labels_are_written_by_the_model_s_own_names(glue, tmp_path):
    names = ["entailment", "neutral", "contradiction"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = spread(save_bert(tmp_path / "model", num_labels=3, n_layer=2, **labels), glue, "mnli")
    run = run_as_command(
        *("--model_name_or_path", model, "--task_name", "MNLI", "--data_dir", glue / "MNLI"),
        *("--output_dir", tmp_path / "out", "--max_seq_length", 48),
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{tmp_path}/out/MNLI-m.tsv", f"{tmp_path}/out/MNLI-mm.tsv"]
    for name, file in (("mnli", "MNLI-m.tsv"), ("mnli-mm", "MNLI-mm.tsv")):
        assert read_predictions(tmp_path / "out" / file) == [names[i] for i in one_by_one(model, glue, name)]


def test_scores_are_cut_to_0_and_5(glue, tmp_path):
    model = spread(save_run(tmp_path / "sts-b", "sts-b"), glue, "sts-b", factor=1000, centre=2.5)
    fixed = ["--task_name", "stsb", "--data_dir", glue / "STS-B", "--output_dir", tmp_path / "out"]
    predict("--model_name_or_path", model, *fixed)
    scores = [float(text) for text in read_predictions(tmp_path / "out" / "STS-B.tsv")]
    assert min(scores) == 0 and max(scores) == 5 and len(scores) == N_ROWS


def test_a_run_s_own_length_holds_unless_another_is_given(glue, tmp_path):
    model = spread(save_run(tmp_path / "mrpc", "mrpc"), glue, "mrpc")
    fixed = ["--model_name_or_path", model, "--task_name", "mrpc", "--data_dir", glue / "MRPC", "--output_dir"]
    predict(*fixed, tmp_path / "own")
    predict(*fixed, tmp_path / "given", "--max_seq_length", 48)
    predict(*fixed, tmp_path / "short", "--max_seq_length", 8)
    own, given, short = ((tmp_path / name / "MRPC.tsv").read_text() for name in ("own", "given", "short"))
    assert own == given != short


@pytest.fixture
def runs(glue, tmp_path) -> Path:
    """Runs of three tasks, MNLI among them; CoLA's has a best checkpoint."""
    save_run(tmp_path / "runs" / "wnli-a", "wnli")
    save_run(tmp_path / "runs" / "mnli-a", "mnli")
    cola = save_run(tmp_path / "runs" / "cola-a", "cola")
    spread(cola, glue, "cola")
    best = shutil.copytree(cola, cola / "checkpoint-best", ignore=shutil.ignore_patterns("run.json"))
    model = AutoModelForSequenceClassification.from_pretrained(best)
    with torch.no_grad():
        model.classifier.weight.neg_()
        model.classifier.bias.neg_()
    model.save_pretrained(best)
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def test_a_folder_of_runs_becomes_a_submission(glue, runs, tmp_path):
    fixed = ["--runs_dir", runs, "--data_dir", glue]
    run = run_as_command(*fixed, "--output_dir", tmp_path / "out", "--fill_missing")
    # WNLI's demo set is as long as the real one, the filled files are too; the other demo sets are not.
    assert run.returncode == 1
    short = [f"{name}: 146 rows, expected {TASKS[task].rows[2]:,}" for task, name in SHORT.items()]
    assert run.stdout.splitlines() == short
    assert run.stderr.splitlines()[-1].endswith("submission.zip: the leaderboard would refuse it")
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(predict_glue.SUBMITTED)
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "out" / name).read_bytes()
    assert set(read_predictions(tmp_path / "out" / "QNLI.tsv")) == {"entailment"}
    assert set(read_predictions(tmp_path / "out" / "STS-B.tsv")) == {"0.000"}
    names = TASKS["mnli"].labels  # AX by MNLI's model
    expected = [names[i] for i in one_by_one(runs / "mnli-a", glue, "ax")]
    assert read_predictions(tmp_path / "out" / "AX.tsv") == expected

    with pytest.raises(SystemExit):
        predict(*fixed, "--output_dir", tmp_path / "last", "--fill_missing", "--checkpoint", "last")
    best, last = (read_predictions(tmp_path / name / "CoLA.tsv") for name in ("out", "last"))
    assert all(a != b for a, b in zip(best, last, strict=True))  # the best one's head is turned round


SHORT = {"cola": "CoLA.tsv", "mnli": "MNLI-m.tsv", "mnli-mm": "MNLI-mm.tsv", "ax": "AX.tsv"}


def test_a_submission_with_every_row_is_good(glue, tmp_path):
    save_run(tmp_path / "runs" / "WNLI", "wnli")
    out = tmp_path / "out"
    predict("--runs_dir", tmp_path / "runs", "--data_dir", glue, "--output_dir", out, "--fill_missing")
    run = run_as_command("--check", out / "submission.zip")
    assert run.returncode == 0 and "all 11 files are there" in run.stdout


def test_an_incomplete_set_of_runs_is_refused_before_anything_is_predicted(capsys, glue, runs, tmp_path):
    fixed = ["--runs_dir", runs, "--data_dir", glue, "--output_dir", tmp_path / "out"]
    reason = refusal(capsys, *fixed)
    assert "holds no run of sst-2, mrpc, sts-b, qqp, qnli, rte:" in reason and "--fill_missing" in reason
    save_run(runs / "mnli-b", "mnli")
    assert "holds two runs of mnli: mnli-a and mnli-b" in refusal(capsys, *fixed, "--fill_missing")
    shutil.rmtree(runs / "mnli-b")
    save_bert(runs / "mrpc", num_labels=3, n_layer=1)
    assert "its task head has 3 outputs, the task needs 2" in refusal(capsys, *fixed, "--fill_missing")
    save_bert(runs / "nameless", n_layer=1)
    assert "no such file" in refusal(capsys, "--data_dir", tmp_path, *fixed[:2], *fixed[4:], "--fill_missing")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "--model_name_or_path is missing"),
        (["--model_name_or_path", "m", "--task_name", "squad"], "--data_dir is missing"),
        (["--model_name_or_path", "m", "--task_name", "squad", "--data_dir", "d"], "--output_dir is missing"),
        (["--runs_dir", "r", "--data_dir", "d"], "--output_dir is missing"),
        (["--runs_dir", "r", "--data_dir", "d", "--output_dir", "o"], "--runs_dir r: no such folder"),
        (["--runs_dir", "r", "--data_dir", "d", "--output_dir", "o", "--task_name", "rte"], "does not go with"),
        (["--check", "nowhere.zip"], "nowhere.zip: no such file"),
        (["--check", __file__], "is no zip that can be read"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(capsys, flags, reason):
    assert reason in refusal(capsys, *flags)


def test_an_unknown_task_and_a_missing_model_are_refused(capsys, glue, tmp_path):
    fixed = ["--data_dir", glue / "RTE", "--output_dir", tmp_path / "out"]
    assert "no such task" in refusal(capsys, "--model_name_or_path", tmp_path, "--task_name", "squad", *fixed)
    nowhere = tmp_path / "nowhere"
    assert "no such folder" in refusal(capsys, "--model_name_or_path", nowhere, "--task_name", "rte", *fixed)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------- --check on damaged submissions


@pytest.fixture(scope="module")
def good_files() -> dict[str, str]:
    """A perfect submission's files."""
    files = {}
    for name, task in predict_glue.SUBMITTED.items():
        label = task.labels[-1] if task.labels else "4.8"
        files[name] = "index\tprediction\n" + "".join(f"{i}\t{label}\n" for i in range(task.rows[2]))
    return files


def problems_of(files: dict[str, str | bytes], folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return predict_glue.check_submission(folder / "submission.zip")


def test_a_perfect_submission_has_no_problem(good_files, tmp_path):
    assert problems_of(good_files, tmp_path) == []
    assert problems_of({n: text.replace("\n", "\r\n") for n, text in good_files.items()}, tmp_path) == []


@pytest.mark.parametrize(
    ("file", "damage", "problems"),
    [
        ("RTE.tsv", None, ["RTE.tsv: is missing"]),
        ("RTE.tsv", lambda t: t.replace("index\t", "id\t", 1), ["RTE.tsv:1: 'id\\tprediction', expected 'index\\tp"]),
        ("WNLI.tsv", lambda t: t.removesuffix("145\t1\n"), ["WNLI.tsv: 145 rows, expected 146"]),
        ("WNLI.tsv", lambda t: t + "146\t1\n", ["WNLI.tsv: 147 rows, expected 146"]),
        ("RTE.tsv", lambda t: t.replace("\n7\tnot_entailment", "\n7\t1"), ["RTE.tsv:9: '1', expected one of entail"]),
        ("AX.tsv", lambda t: t.replace("neutral", "2"), ["AX.tsv:2: '2', expected one of contradiction, entailment, "]),
        ("STS-B.tsv", lambda t: t.replace("\n3\t4.8", "\n3\t5.01"), ["STS-B.tsv:5: '5.01', expected a number from 0"]),
        ("STS-B.tsv", lambda t: t.replace("\n3\t4.8", "\n3\tnan"), ["STS-B.tsv:5: 'nan', expected a number from 0 t"]),
        ("CoLA.tsv", lambda t: t.replace("\n3\t", "\n4\t"), ["CoLA.tsv:5: index '4', expected 3"]),
        (
            "CoLA.tsv",
            lambda t: t.replace("\n3\t1\n", "\n"),
            ["CoLA.tsv:5: index '4', expected 3 (1,059 such lines)", "CoLA.tsv: 1,062 rows, expected 1,063"],
        ),
        ("MRPC.tsv", lambda t: b"\xff\xfe" + t.encode(), ["MRPC.tsv:1: "]),
        ("MRPC.tsv", lambda t: "", ["MRPC.tsv:1: '', expected", "MRPC.tsv: 0 rows, expected 1,725"]),
        ("SST-2.tsv", lambda t: "x" * (predict_glue.MAX_FILE + 1), ["SST-2.tsv: 67,108,865 bytes are no file"]),
    ],
)
def test_what_is_wrong_with_a_submission_is_said(good_files, tmp_path, file, damage, problems):
    files = dict(good_files)
    text = files.pop(file)
    if damage:
        files[file] = damage(text)
    found = problems_of(files, tmp_path)
    assert len(found) == len(problems)
    assert all(line.startswith(start) for line, start in zip(found, problems, strict=True)), found


def test_a_file_under_another_name_is_two_problems(good_files, tmp_path):
    files = {name.replace("MRPC", "mrpc"): text for name, text in good_files.items()}
    assert problems_of(files, tmp_path) == ["MRPC.tsv: is missing", "mrpc.tsv: is none of the eleven files"]
    run = run_as_command("--check", tmp_path / "submission.zip")
    assert run.returncode == 1 and len(run.stdout.splitlines()) == 2 and "would refuse it" in run.stderr
