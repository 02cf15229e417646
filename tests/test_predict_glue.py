"""Predictions as the leaderboard takes them, from small real models."""

import json
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import predict_glue
import pytest
import torch
from conftest import BAD, GOOD, save_bert, save_roberta, sentence
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from glue_processors import TASKS, find_task, read_examples

N_ROWS = 40  # of each test set but WNLI's, which is complete


def predict(*args: object) -> None:
    predict_glue.main(predict_glue.parse_args([str(a) for a in args]))


def refusal(capsys, *args: object) -> str:
    """The one line with which these arguments are refused."""
    with pytest.raises(SystemExit) as exit_:
        predict(*args)
    said = capsys.readouterr().err if exit_.value.code == 2 else exit_.value.code
    assert len(said.splitlines()) == 1
    return said


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    """The test sets of all tasks, with sentences of every length in no order."""
    folder, rng = tmp_path_factory.mktemp("glue"), random.Random(0)
    for task in TASKS.values():
        lines = ["\t".join("header" for _ in range(10))]
        for i in range(task.rows[2] if task.name == "wnli" else N_ROWS):
            cells = [str(i)] + [""] * 9
            for column in task.test_sentences:
                cells[column] = sentence(rng, GOOD + BAD) + " good" * (i * 7 % 40)
            lines.append("\t".join(cells))
        (folder / task.folder).mkdir(exist_ok=True)
        (folder / task.folder / task.test).write_text("\n".join(lines) + "\n")
    return folder


def save_run(folder: Path, task_name: str, **config) -> Path:
    """A run's folder: a random model with the task's head, and the record that a run leaves."""
    task = find_task(task_name)
    save_bert(folder, num_labels=task.num_labels, n_layer=2, **config)
    record = {"task": task.name, "arguments": {"max_seq_length": 48, "seed": 42}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def edit_head(folder: Path, change) -> Path:
    """Change the last layer of a saved model, in place."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        change(model.classifier)
    model.save_pretrained(folder)
    return folder


def logits_one_by_one(folder: Path, glue: Path, task_name: str) -> torch.Tensor:
    """(rows, outputs) for the test set, by transformers alone and without batches."""
    task = find_task(task_name)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = read_examples(task, glue / task.folder, "test")
    pairs = zip(examples.first, examples.second or [None] * len(examples.first), strict=True)
    with torch.no_grad():
        inputs = [tokenizer(a, b, truncation=True, max_length=48, return_tensors="pt") for a, b in pairs]
        return torch.cat([model(**row).logits for row in inputs])


def read_predictions(path: Path) -> list[str]:
    header, *rows = path.read_text().splitlines()
    assert header == "index\tprediction"
    assert [row.split("\t")[0] for row in rows] == [str(i) for i in range(len(rows))]
    return [row.split("\t")[1] for row in rows]


@pytest.mark.parametrize("save", [save_bert, save_roberta])
def test_rows_stay_in_file_order_whatever_their_length(save, glue, tmp_path):
    model = save(tmp_path / "model", n_layer=2)
    fixed = ["--task_name", "mrpc", "--data_dir", glue / "MRPC", "--max_seq_length", 48, "--output_dir", tmp_path]
    predict("--model_name_or_path", model, *fixed, "--per_gpu_eval_batch_size", 7)
    expected = [str(output) for output in logits_one_by_one(model, glue, "mrpc").argmax(1).tolist()]
    assert read_predictions(tmp_path / "MRPC.tsv") == expected
    # What a random model predicts depends on the version of transformers; this one always tells rows apart.
    assert save is save_roberta or 0 < expected.count("1") < N_ROWS


def test_labels_are_written_by_the_model_s_own_names_and_mnli_has_two_files(capsys, glue, tmp_path):
    names = ["entailment", "neutral", "contradiction"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = save_run(tmp_path / "model", "mnli", **labels)
    fixed = ["--task_name", "MNLI", "--data_dir", glue / "MNLI", "--output_dir", tmp_path / "out"]
    predict("--model_name_or_path", model, *fixed)
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/out/MNLI-m.tsv", f"{tmp_path}/out/MNLI-mm.tsv"]
    for name, file in (("mnli", "MNLI-m.tsv"), ("mnli-mm", "MNLI-mm.tsv")):
        expected = [names[i] for i in logits_one_by_one(model, glue, name).argmax(1)]
        assert read_predictions(tmp_path / "out" / file) == expected and len(set(expected)) > 1


def test_scores_are_cut_to_0_and_5(glue, tmp_path):
    model = edit_head(save_run(tmp_path / "sts-b", "sts-b"), lambda head: (head.weight.mul_(-6), head.bias.fill_(-2)))
    fixed = ["--task_name", "stsb", "--data_dir", glue / "STS-B", "--output_dir", tmp_path / "out"]
    predict("--model_name_or_path", model, *fixed)
    scores = torch.tensor([float(text) for text in read_predictions(tmp_path / "out" / "STS-B.tsv")])
    expected = logits_one_by_one(model, glue, "sts-b")[:, 0].clamp(0, 5)
    assert torch.allclose(scores, expected, atol=2e-3) and {0, 5} < set(scores.tolist())


def test_input_is_cut_as_in_training_unless_another_length_is_given(glue, tmp_path):
    run = save_run(tmp_path / "run", "mrpc")
    checkpoint = shutil.copytree(run, run / "checkpoint-5", ignore=shutil.ignore_patterns("run.json"))
    fixed = ["--task_name", "mrpc", "--data_dir", glue / "MRPC", "--output_dir"]
    predict("--model_name_or_path", run, *fixed, tmp_path / "own")
    predict("--model_name_or_path", checkpoint, *fixed, tmp_path / "checkpoint")
    predict("--model_name_or_path", run, *fixed, tmp_path / "given", "--max_seq_length", 48)
    predict("--model_name_or_path", run, *fixed, tmp_path / "short", "--max_seq_length", 8)
    own, *others = (read_predictions(tmp_path / n / "MRPC.tsv") for n in ("own", "checkpoint", "given", "short"))
    assert [predictions == own for predictions in others] == [True, True, False]


def test_outputs_that_are_no_numbers_are_refused(capsys, glue, tmp_path):
    model = edit_head(save_run(tmp_path / "rte", "rte"), lambda head: head.bias.fill_(float("nan")))
    fixed = ["--task_name", "rte", "--data_dir", glue / "RTE", "--output_dir", tmp_path / "out"]
    assert "its outputs are not finite numbers" in refusal(capsys, "--model_name_or_path", model, *fixed)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def runs(tmp_path) -> Path:
    """Runs of three tasks, MNLI among them. CoLA's has a best checkpoint, whose head is turned round."""
    save_run(tmp_path / "runs" / "wnli-a", "wnli")
    save_run(tmp_path / "runs" / "mnli-a", "mnli")
    cola = save_run(tmp_path / "runs" / "cola-a", "cola")
    best = shutil.copytree(cola, cola / "checkpoint-best", ignore=shutil.ignore_patterns("run.json"))
    edit_head(best, lambda head: (head.weight.neg_(), head.bias.neg_()))
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def test_a_folder_of_runs_becomes_a_submission(capsys, glue, runs, tmp_path):
    fixed = ["--runs_dir", runs, "--data_dir", glue, "--fill_missing", "--output_dir"]
    assert "submission.zip: the leaderboard would refuse it" in refusal(capsys, *fixed, tmp_path / "out")
    short = {"CoLA.tsv": "1,063", "MNLI-m.tsv": "9,796", "MNLI-mm.tsv": "9,847", "AX.tsv": "1,104"}
    problems = [f"{name}: {N_ROWS} rows, expected {n_rows}" for name, n_rows in short.items()]
    assert predict_glue.check_submission(tmp_path / "out" / "submission.zip") == problems

    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(predict_glue.SUBMITTED)
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "out" / name).read_bytes()
    assert set(read_predictions(tmp_path / "out" / "QNLI.tsv")) == {"entailment"}
    assert set(read_predictions(tmp_path / "out" / "STS-B.tsv")) == {"0.000"}
    by_mnli = [TASKS["mnli"].labels[i] for i in logits_one_by_one(runs / "mnli-a", glue, "ax").argmax(1)]
    assert read_predictions(tmp_path / "out" / "AX.tsv") == by_mnli

    refusal(capsys, *fixed, tmp_path / "best", "--checkpoint", "best")
    last, best = (read_predictions(tmp_path / name / "CoLA.tsv") for name in ("out", "best"))
    own = [TASKS["cola"].labels[i] for i in logits_one_by_one(runs / "cola-a", glue, "cola").argmax(1)]
    assert last == own and all(a != b for a, b in zip(best, last, strict=True))


def test_an_incomplete_set_of_runs_is_refused_before_anything_is_predicted(capsys, caplog, glue, runs, tmp_path):
    caplog.set_level("INFO")
    fixed = ["--runs_dir", runs, "--output_dir", tmp_path / "out", "--data_dir", glue]
    reason = refusal(capsys, *fixed)
    assert "holds no run of sst-2, mrpc, sts-b, qqp, qnli, rte:" in reason and "--fill_missing" in reason
    save_run(runs / "mnli-b", "mnli")
    assert f"two runs of mnli: {runs}/mnli-a and {runs}/mnli-b" in refusal(capsys, *fixed, "--fill_missing")
    shutil.rmtree(runs / "mnli-b")
    save_bert(runs / "sst2", num_labels=3, n_layer=1)  # without run.json its name tells its task
    assert "its task head has 3 outputs, the task needs 2" in refusal(capsys, *fixed, "--fill_missing")
    assert "no such file" in refusal(capsys, *fixed[:-1], tmp_path, "--fill_missing")
    (tmp_path / "none").mkdir()
    assert "no run of a task of GLUE" in refusal(capsys, "--runs_dir", tmp_path / "none", *fixed[2:], "--fill_missing")
    assert " rows by " not in caplog.text and not (tmp_path / "out").exists()


ONE_TASK = ["--model_name_or_path", "./m", "--task_name", "rte", "--data_dir", "d", "--output_dir", "o"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "--data_dir is missing"),
        (ONE_TASK[2:], "--model_name_or_path is missing"),
        (["--runs_dir", "r", "--data_dir", "d"], "--output_dir is missing"),
        (["--runs_dir", "r", *ONE_TASK], "--runs_dir is for all tasks"),
        (["--runs_dir", "r", *ONE_TASK[4:]], "--runs_dir r: no such folder"),
        ([*ONE_TASK, "--task_name", "squad"], "--task_name: there is no task 'squad'; there are cola"),
        (ONE_TASK, "d/test.tsv: no such file"),
        ([*ONE_TASK, "--checkpoint", "best"], "--checkpoint and --fill_missing are for --runs_dir"),
        ([*ONE_TASK, "--output_dir", __file__], "nothing can be written there"),
        (["--check", "nowhere.zip"], "nowhere.zip: no such file"),
        (["--check", __file__], "is no zip that can be read"),
    ],
)
def test_what_the_user_can_mend_is_told_in_one_line(capsys, flags, reason):
    assert reason in refusal(capsys, *flags)


@pytest.fixture(scope="module")
def submission(glue, tmp_path_factory) -> Path:
    """A submission with every row: WNLI's are predicted, all others filled."""
    folder = tmp_path_factory.mktemp("submission")
    save_run(folder / "runs" / "WNLI", "wnli")
    predict("--runs_dir", folder / "runs", "--data_dir", glue, "--output_dir", folder, "--fill_missing")
    return folder / "submission.zip"


def test_the_command_says_of_a_submission_with_every_row_that_it_is_good(submission):
    command = [sys.executable, predict_glue.__file__, "--check", submission.name]
    run = subprocess.run(command, cwd=submission.parent, capture_output=True, text=True)
    assert run.returncode == 0 and "all 11 files are there" in run.stdout


def test_a_file_under_another_name_and_a_damaged_archive_are_told(capsys, submission, tmp_path):
    path = tmp_path / "renamed.zip"
    with zipfile.ZipFile(submission) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as renamed:
        for name in good.namelist():
            renamed.writestr(name.replace("MRPC", "mrpc"), good.read(name))
    problems = ["MRPC.tsv: is missing", "mrpc.tsv: is none of the eleven files"]
    assert predict_glue.check_submission(path) == problems
    data = bytearray(path.read_bytes())
    data[100:200] = bytes(100)
    path.write_bytes(data)
    assert "is no zip that can be read" in refusal(capsys, "--check", path)


@pytest.mark.parametrize(
    ("file", "damage", "problems"),
    [
        ("RTE.tsv", lambda t: t.replace("\n", "\r\n"), []),
        ("RTE.tsv", lambda t: t.replace("index\t", "id\t", 1), ["RTE.tsv:1: 'id\\tprediction', expected 'index\\tp"]),
        ("WNLI.tsv", lambda t: t.removesuffix("145\t1\n"), ["WNLI.tsv: 145 rows, expected 146"]),
        ("WNLI.tsv", lambda t: t + "146\t1\n", ["WNLI.tsv: 147 rows, expected 146"]),
        ("RTE.tsv", lambda t: t.replace("\n7\tnot_entailment", "\n7\t1"), ["RTE.tsv:9: '1', expected one of entail"]),
        ("STS-B.tsv", lambda t: t.replace("\n3\t4.8", "\n3\t5.01"), ["STS-B.tsv:5: '5.01', expected a number from 0"]),
        ("STS-B.tsv", lambda t: t.replace("\n3\t4.8", "\n3\tnan"), ["STS-B.tsv:5: 'nan', expected a number from 0 t"]),
        (
            "CoLA.tsv",
            lambda t: t.replace("\n3\t1\n", "\n"),
            ["CoLA.tsv:5: index '4', expected 3 (1,059 such lines)", "CoLA.tsv: 1,062 rows, expected 1,063"],
        ),
        ("MRPC.tsv", lambda t: "\ufeff" + t, ["MRPC.tsv:1: "]),
        ("MRPC.tsv", lambda t: "", ["MRPC.tsv:1: '', expected", "MRPC.tsv: 0 rows, expected 1,725"]),
    ],
)
def test_what_is_wrong_with_a_file_of_predictions_is_told(file, damage, problems):
    task = predict_glue.SUBMITTED[file]
    label = task.labels[-1] if task.labels else "4.8"
    text = "index\tprediction\n" + "".join(f"{i}\t{label}\n" for i in range(task.rows[2]))
    assert predict_glue.check_file(task, text.encode()) == []
    found = predict_glue.check_file(task, damage(text).encode())
    assert len(found) == len(problems)
    assert all(line.startswith(start) for line, start in zip(found, problems, strict=True)), found
