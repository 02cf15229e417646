"""Files of one's own: how they are read, what is refused, and that a run takes them like GLUE's."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import compare
import numpy as np
import predict_glue
import pytest
import summarize
import torch
from conftest import BAD, GOOD, save_bert, write_glue
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from test_run_glue import read_results, run_here
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import run_glue
from bert_of_theseus.data.own_files import OwnFiles, read_own_files, read_texts
from bert_of_theseus.data.scores import compute_metrics
from bert_of_theseus.data.tables import read_table
from bert_of_theseus.data.task import DataError
from bert_of_theseus.run.run import Run
from glue_processors import TASKS, read_examples

ROWS = [("good film", "pos"), ('say "no", twice\nand again', "neg"), ("", "pos"), ("café\r\n☃", "neu")]


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def write_csv(path: Path, header: list[str], rows: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def as_objects(rows=ROWS) -> list[dict]:
    return [{"sentence": text, "label": label} for text, label in rows]


# -------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".jsonl", ".json", ".json of lines"])
def test_every_format_gives_the_same_rows_in_order(tmp_path, suffix):
    path = tmp_path / f"train{suffix.split()[0]}"
    if suffix.lower() == ".csv":
        write_csv(path, ["id", "label", "sentence"], [(i, label, text) for i, (text, label) in enumerate(ROWS)])
    elif suffix == ".json":
        write(path, json.dumps(as_objects(), indent=1))
    else:
        write(path, "\n\n".join(map(json.dumps, as_objects())))
    data = read_own_files(OwnFiles(train=str(path)))
    assert data.train.first == [text for text, _ in ROWS] and data.train.second is None
    assert data.task.labels == ("neg", "neu", "pos") and data.train.labels.tolist() == [2, 0, 2, 1]


def test_a_tsv_has_no_quoting_and_its_rows_end_at_line_feeds_only(tmp_path):
    path = write(tmp_path / "a.tsv", '\ufeffsentence\tlabel\r\n" The end\t1\r\nsay "no"\u2028\t0\r\n\r\n\tyes')
    data = read_own_files(OwnFiles(train=path))
    assert data.train.first == ['" The end', 'say "no"\u2028', ""] and data.task.labels == ("0", "1", "yes")


def test_a_byte_order_mark_and_a_very_long_text_are_read(tmp_path):
    path = write(tmp_path / "a.csv", "\ufeffsentence,label\n" + "x" * 200_000 + ",1\nb,0\n")
    assert len(read_own_files(OwnFiles(train=path)).train.first[0]) == 200_000


def test_pairs_and_columns_of_other_names_are_read(tmp_path):
    pairs = write_csv(tmp_path / "a.csv", ["sentence2", "label", "sentence1"], [("b", 1, "a"), ("d", 0, "c")])
    data = read_own_files(OwnFiles(train=pairs))
    assert (data.train.first, data.train.second) == (["a", "c"], ["b", "d"])
    files = OwnFiles(train=pairs, text_columns=("sentence2",), label_column="sentence1")
    data = read_own_files(files)
    assert (data.train.first, data.train.second, data.task.labels) == (["b", "d"], None, ("a", "c"))
    assert data.train.sha256 != read_own_files(OwnFiles(train=pairs)).train.sha256


def test_labels_are_sorted_as_numbers_where_all_are_whole(tmp_path):
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"sentence": "a", "label": n}) for n in (10, 9, "-1", 9)))
    data = read_own_files(OwnFiles(train=path))
    assert data.task.labels == ("-1", "9", "10") and data.train.labels.tolist() == [2, 1, 0, 1]


def test_scores_are_read_and_the_task_is_named_after_folder_and_file(tmp_path):
    train = write_csv(tmp_path / "likes" / "train.csv", ["sentence", "label"], [("a", "0.5"), ("b", -2), ("c", "1e3")])
    data = read_own_files(OwnFiles(train=train, validation=train, do_regression=True))
    assert data.train.labels.tolist() == [0.5, -2, 1000] and data.train.labels.dtype == np.float32
    assert data.task.name == "likes/train" and list(data.dev) == ["likes/train"]
    assert data.task.labels is None and data.task.main_metric == "corr"


def test_texts_without_labels_are_read_one_a_line_the_empty_ones_too(tmp_path):
    path = write(tmp_path / "a.csv", "sentence\nfirst\n\nthird\n")
    assert read_texts(path, OwnFiles()).examples.first == ["first", "", "third"]


def test_metrics_are_accuracy_and_the_mean_f1_or_that_of_one_class(tmp_path):
    train = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, as_objects())))
    predictions, labels = np.array([0, 1, 2, 2, 1, 0]), np.array([0, 1, 2, 1, 1, 2])
    task = read_own_files(OwnFiles(train=train)).task
    found = compute_metrics(task, predictions, labels)
    assert found == {"acc": pytest.approx(4 / 6), "macro_f1": f1_score(labels, predictions, average="macro")}
    assert task.main_metric == "acc"
    task = read_own_files(OwnFiles(train=train, positive_label="neg", main_metric="f1")).task
    assert compute_metrics(task, predictions, labels)["f1"] == pytest.approx(2 / 3) and task.main_metric == "f1"


# -------------------------------------------------------------------------------------------- refusing


GOOD_ROWS = "sentence,label\na,1\nb,0\n"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (
            "t.csv",
            "text,stars\na,1\n",
            ": no column 'sentence', and no 'sentence1' and 'sentence2'; there are 'text', ",
        ),
        ("t.csv", "sentence,stars\na,1\n", ": no column 'label'; there are 'sentence', 'stars': give --label_col"),
        (
            "t.csv",
            "sentence;label\na;1\n",
            "there are 'sentence;label' (.csv needs commas between the columns, .tsv tabs)",
        ),
        ("t.csv", GOOD_ROWS + 'c,"a\nb",1\n', ":4: 3 columns; the header has 2"),
        ("t.csv", GOOD_ROWS + 'c,"a\nb"\nd\n', ":6: 1 columns; the header has 2"),
        ("t.csv", GOOD_ROWS + '"c"x,1\n', ":4: ',' expected after '\"'; expected CSV as RFC 4180 has it"),
        ("t.csv", GOOD_ROWS + '"c,1\n', ":4: unexpected end of data"),
        ("t.tsv", "sentence\tlabel\na\t1\nb\n", ":3: 1 columns; the header has 2"),
        ("t.csv", b"sentence,label\nfine,1\ncaf\xe9,0\n", ":3: not UTF-8 (byte 0xe9); save it as UTF-8"),
        ("t.csv", "sentence,label\na,1\n".encode("utf-16"), ":1: not UTF-8 (byte 0xff)"),
        ("t.csv", "", ": no rows"),
        ("t.csv", "sentence,label\n", ": no rows"),
        ("t.json", "[]", ": no rows"),
        ("t.csv", "sentence,label\na,1\nb,1\n", ": one class only, '1'"),
        ("t.csv", "sentence,label\na,1\nb,\n", ":3: no label; expected text or a whole number"),
        (
            "t.csv",
            "sentence,label\na,1\nb,2.5\n",
            ": its labels are numbers with fractions, such as 2.5: give --do_reg",
        ),
        ("t.csv", "sentence,label,,label,\na,1,,2,\n", ":1: two columns have the same name; there are 'sentence'"),
        ("t.txt", GOOD_ROWS, ": its name should end in .csv, .tsv, .json, .jsonl; save a spreadsheet as CSV in UTF-8"),
        ("t", GOOD_ROWS, ": its name should end in .csv"),
        ("t.jsonl", '{"sentence": "cut \\ud83d", "label": 1}\n', ":1: 'sentence' is \"cut \\ud83d\"; expected text"),
        (
            "t.jsonl",
            '{"sentence": "a", "label": 1}\n{"sentence": "b"}\n',
            ":2: no column 'label'; there are 'sentence'",
        ),
        ("t.jsonl", '{"sentence": "a", "label": 1.5}\n', ":1: label 1.5; expected text or a whole number; --do_regr"),
        ("t.jsonl", '{"sentence": null, "label": 1}\n', ":1: 'sentence' is null; expected text"),
        ("t.jsonl", '{"sentence": "a"\n', ":1: no JSON ("),
        ("t.jsonl", '"a"\n', ':1: "a"; expected an object, with the columns as its keys'),
        ("t.json", '[{"sentence": "a", "label": 1}, 3]', ": row 2: 3; expected an object"),
        ("t.json", '[{"sentence": "a"', ": no JSON ("),
    ],
)
def test_a_bad_training_file_is_refused_with_its_line_and_what_was_expected(tmp_path, name, text, reason):
    path = write(tmp_path / name, text)
    with pytest.raises(DataError) as error:
        read_own_files(OwnFiles(train=path))
    assert str(error.value).startswith(path) and reason in str(error.value)


def test_a_label_that_training_has_not_is_refused(tmp_path):
    train, dev = write(tmp_path / "a.csv", GOOD_ROWS), write(tmp_path / "b.csv", "sentence,label\nb,1\nc,maybe\n")
    with pytest.raises(DataError, match=r"b\.csv:3: label 'maybe'; expected one of 0, 1, which are those of .*a\.csv"):
        read_own_files(OwnFiles(train=train, validation=dev))
    with pytest.raises(DataError, match=r"b\.csv:3: label 'maybe'; expected a number"):
        read_own_files(OwnFiles(train=train, validation=dev, do_regression=True))


def test_of_several_runs_the_metrics_are_those_of_the_first_that_names_any():
    runs = [{"arguments": {"positive_label": "spam"}}, {"arguments": {"metric_for_best_model": "macro_f1"}}]
    for records, expected in ((runs, ("spam", "")), (runs[::-1], ("", "macro_f1"))):
        files = OwnFiles.of({}, *records)
        assert (files.positive_label, files.main_metric) == expected
    files = OwnFiles.of({"metric_for_best_model": "f1"}, *runs)
    assert (files.positive_label, files.main_metric) == ("spam", "f1")


def test_a_missing_file_and_settings_that_do_not_fit_are_refused(tmp_path):
    train = write(tmp_path / "a.csv", GOOD_ROWS)
    for files, reason in [
        (OwnFiles(train=str(tmp_path / "no.csv")), "no.csv: no such file"),
        (OwnFiles(train=train, positive_label="yes"), "--positive_label yes: the labels are 0, 1"),
        (OwnFiles(train=train, main_metric="mcc"), "--metric_for_best_model mcc: there are acc, macro_f1"),
        (OwnFiles(train=train, do_regression=True, positive_label="1"), "--positive_label 1: the labels are scores"),
    ]:
        with pytest.raises(DataError) as error:
            read_own_files(files)
        assert reason in str(error.value)


# -------------------------------------------------------------------------------------------- running


FLAGS = "--max_seq_length 32 --learning_rate 1e-3 --no_cuda --per_gpu_eval_batch_size 8 --logging_steps 4".split()
TRAIN = [*FLAGS, *"--do_train --do_eval --max_steps 12 --save_steps 0".split()]
COMPRESS = [*TRAIN, *"--replacing_rate 0.5 --steps_for_replacing 6".split()]


def own(folder: Path, output: Path, model: Path, *more: object) -> list:
    files = ["--train_file", folder / "train.csv", "--validation_file", folder / "dev.csv"]
    return [*files, "--output_dir", output, "--model_name_or_path", model, *more]


def write_out(task: str, data_dir: Path, folder: Path) -> Path:
    """The train and dev sets of a GLUE task as CSV files."""
    for split in ("train", "dev"):
        examples = read_examples(TASKS[task], data_dir, split)
        labels = [TASKS[task].labels[i] for i in examples.labels] if TASKS[task].labels else examples.labels.tolist()
        texts = [examples.first, *([examples.second] if examples.second else [])]
        columns = ["sentence1", "sentence2"] if examples.second else ["sentence"]
        write_csv(folder / f"{split}.csv", [*columns, "label"], list(zip(*texts, labels, strict=True)))
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    """A folder with train.csv and dev.csv of three classes."""
    folder = tmp_path_factory.mktemp("reviews")
    rows = [(f"{(GOOD + BAD)[i % 10]} film", ["Fine", "bad ", "So-so"][i % 3]) for i in range(30)]
    write_csv(folder / "train.csv", ["text", "verdict"], rows)
    write_csv(folder / "dev.csv", ["text", "verdict"], rows[:15])
    return folder


NAMES = ["--text_column_names", "text", "--label_column_name", "verdict"]


@pytest.fixture(scope="module")
def predecessor(reviews, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predecessor")
    run_here(*own(reviews, folder, save_bert(tmp_path_factory.mktemp("base")), *NAMES, *TRAIN))
    return folder


@pytest.mark.parametrize("task", ["cola", "mrpc", "sts-b"])
def test_a_glue_task_written_out_gives_the_same_run(tmp_path, task):
    data = write_glue(tmp_path / "glue", task)
    model = save_bert(tmp_path / "model", num_labels=TASKS[task].num_labels)
    flags = ["--model_name_or_path", model, *COMPRESS]
    run_here("--task_name", task, "--data_dir", data, "--output_dir", tmp_path / "theirs", *flags)
    regression = [] if TASKS[task].labels else ["--do_regression"]
    run_here(*own(write_out(task, data, tmp_path / "own"), tmp_path / "ours", model, *COMPRESS, *regression))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("ours", "theirs")]
    ours, theirs = ([line for line in log if '"loss"' in line] for log in logs)
    assert ours == theirs and len(ours) == 3


def test_labels_are_in_the_config_the_log_the_record_and_the_card(reviews, predecessor, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    run_here(*own(reviews, tmp_path / "out", predecessor, *NAMES, *COMPRESS))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == {0: "Fine", 1: "So-so", 2: "bad"} and config.num_hidden_layers == 2
    name = f"{reviews.name}/train"
    assert f"{name}: 30 training rows, 15 dev rows" in caplog.text and "Fine, So-so, bad" in caplog.text
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["task"] == name and set(record["data"]) == {"--train_file", "--validation_file"}
    assert set(record["last"]["metrics"]) == {"acc", "macro_f1"} and record["last"]["loyalty"]
    assert f"| task | {name} |" in (tmp_path / "out" / "README.md").read_text()
    assert list(reviews.glob("cached_dev_*")) and "acc kept" in capsys.readouterr().out


def test_a_finished_run_of_own_files_is_known_again_and_others_are_refused(reviews, predecessor, tmp_path, caplog):
    caplog.set_level("INFO")
    flags = own(reviews, tmp_path / "out", predecessor, *NAMES, *TRAIN)
    run_here(*flags)
    run_here(*flags, "--resume")
    assert "is finished" in caplog.text
    with pytest.raises(SystemExit, match="--max_train_samples was None, is 20; give"):
        run_here(*flags, "--resume", "--max_train_samples", 20)


def test_a_model_is_evaluated_on_a_file_without_its_training_file(reviews, predecessor, tmp_path, capsys):
    flags = ["--validation_file", reviews / "dev.csv", "--model_name_or_path", predecessor, *FLAGS]
    run_here(*flags, "--output_dir", tmp_path / "out", "--do_eval")
    (line,) = capsys.readouterr().out.splitlines()
    recorded = json.loads((predecessor / "run.json").read_text())["last"]["metrics"]
    assert json.loads(line) == {f"eval_{name}": value for name, value in recorded.items()}


def test_predictions_are_a_row_for_each_text_in_order(reviews, predecessor, tmp_path, capsys):
    texts = ["good film", "", 'say "no", twice\nbad', "bad film", "ugly\rcat"]
    test_file = write_csv(tmp_path / "new.csv", ["id", "text"], list(enumerate(texts)))
    output = tmp_path / "deep" / "out.csv"
    flags = ["--model_name_or_path", predecessor, "--test_file", test_file, "--output_file", output, "--no_cuda"]
    predict_glue.main(predict_glue.parse_args(list(map(str, flags))))  # the run's record names the column
    assert capsys.readouterr().out.strip() == str(output)
    with open(output, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "text", "prediction", "probability_Fine", "probability_So-so", "probability_bad"]
    assert [row[0] for row in rows] == list("01234")
    assert_predicted([row[1:] for row in rows], header[1:], texts, predecessor)


def assert_predicted(rows: list[list[str]], header: list[str], texts: list[str], model_folder: Path) -> None:
    """The rows are what the model itself says of the texts, one by one."""
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert len(rows) == len(texts)
    for row, text in zip(rows, texts, strict=True):
        with torch.no_grad():
            probabilities = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        found = {header[i].removeprefix("probability_"): float(row[i]) for i in range(2, len(header))}
        expected = {model.config.id2label[i]: p for i, p in enumerate(probabilities.tolist())}
        assert found == pytest.approx(expected, abs=1e-5)
        assert row[1] == max(found, key=found.get) and row[0] == text


def test_a_run_predicts_its_test_file_with_its_result(reviews, predecessor, tmp_path, caplog):
    texts = ["good film", "", "bad", "a cat is not ugly", "So very very good"]
    test_file = write_csv(tmp_path / "new.csv", ["text"], [[text] for text in texts])
    # The predecessor counts its labels in another order than the file's.
    model = AutoModelForSequenceClassification.from_pretrained(predecessor)
    model.config.id2label, model.config.label2id = {0: "bad", 1: "Fine", 2: "So-so"}, {"bad": 0, "Fine": 1, "So-so": 2}
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(predecessor).save_pretrained(tmp_path / "model")
    flags = own(reviews, tmp_path / "run", tmp_path / "model", *NAMES, *COMPRESS, "--test_file", test_file)
    run_here(*flags)
    written = tmp_path / "run" / "predictions.csv"
    header, *rows = csv.reader(written.read_text().splitlines())
    assert_predicted(rows, header, texts, tmp_path / "run")
    assert "predictions.csv" in json.loads((tmp_path / "run" / "run.json").read_text())["files"]
    run_here(*own(reviews, tmp_path / "without", predecessor, *NAMES, *COMPRESS))  # predicted into by another command
    record = json.loads((tmp_path / "without" / "run.json").read_text())
    assert "predictions.csv" not in record["files"]
    run_here(*own(reviews, tmp_path / "without", predecessor, *NAMES, *COMPRESS), "--test_file", test_file, "--resume")
    files = [*record["files"], "predictions.csv"]
    assert json.loads((tmp_path / "without" / "run.json").read_text()) == record | {"files": files}
    assert not (tmp_path / "without" / "unfinished_run.json").exists()
    before = written.read_bytes()
    written.unlink()
    run_here(*flags, "--resume")  # the finished run predicts again
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    ("output", "reason"), [("model", "is a folder; name a file"), ("new.csv/x.csv", "nothing can be written there")]
)
def test_an_output_file_that_cannot_be_is_refused_before_anything_is_predicted(predecessor, tmp_path, output, reason):
    (tmp_path / "model").mkdir()
    test_file = write_csv(tmp_path / "new.csv", ["text"], [["a"]])
    flags = ["--model_name_or_path", predecessor, "--test_file", test_file, "--output_file", tmp_path / output]
    with pytest.raises(SystemExit, match=reason):
        predict_glue.main(predict_glue.parse_args(list(map(str, flags))))


def test_predictions_keep_the_named_columns_of_all_rows_and_their_own_come_last(predecessor, tmp_path):
    rows = [{"text": "good", "tags": ["a", 1], "prediction": "old"}, {"text": "bad", "id": 7, "ok": True, "none": None}]
    test_file = write(tmp_path / "new.jsonl", "\n".join(map(json.dumps, rows)))
    output = tmp_path / "out.csv"
    flags = ["--model_name_or_path", predecessor, "--test_file", test_file, "--output_file", output, "--no_cuda"]
    predict_glue.main(predict_glue.parse_args(list(map(str, flags))))
    first, second = csv.DictReader(output.read_text().splitlines())
    assert list(first)[:6] == ["text", "tags", "id", "ok", "none", "prediction"] and len(first) == 9
    assert (first["tags"], first["id"], second["id"], second["ok"], second["none"]) == ('["a", 1]', "", "7", "true", "")
    assert first["prediction"] in ("Fine", "So-so", "bad")


def test_a_model_of_single_texts_takes_no_pairs_and_a_model_of_pairs_no_single_texts(reviews, predecessor, tmp_path):
    """It would give every row an answer, and a wrong one."""
    single = write_csv(tmp_path / "single.csv", ["sentence", "label"], [["good", 0], ["bad", 1]])
    pairs = write_csv(tmp_path / "pairs.csv", ["sentence1", "sentence2", "label"], [["a", "good", 0], ["b", "bad", 1]])
    flags = ["--model_name_or_path", predecessor, "--test_file", pairs, "--output_file", tmp_path / "out.csv"]
    flags += ["--text_column_names", "sentence1,sentence2"]
    with pytest.raises(SystemExit, match=r"pairs\.csv: pairs of texts; the model is trained on single ones"):
        predict_glue.main(predict_glue.parse_args(list(map(str, flags))))
    for train, other, reason in [(single, pairs, "pairs.csv: pairs of texts"), (pairs, single, "single.csv: single")]:
        with pytest.raises(DataError, match=reason):
            read_own_files(OwnFiles(str(train), str(other)))
        flags = ["--train_file", train, "--validation_file", train, "--test_file", other, *FLAGS, *TRAIN]
        with pytest.raises(SystemExit, match=reason):
            run_here(*flags, "--model_name_or_path", predecessor, "--output_dir", tmp_path / "run")
    flags = ["--validation_file", pairs, "--text_column_names", "sentence1,sentence2", "--label_column_name", "label"]
    flags += ["--model_name_or_path", predecessor, "--output_dir", tmp_path / "run"]
    with pytest.raises(SystemExit, match=r"pairs\.csv: pairs of texts"):
        run_here(*flags, "--do_eval", *FLAGS)
    assert not (tmp_path / "run").exists() and not (tmp_path / "out.csv").exists()


def test_scores_are_predicted_as_they_are(tmp_path):
    model = save_bert(tmp_path / "model", num_labels=1)
    test_file, output = write(tmp_path / "new.csv", "sentence1,sentence2\na,good\nb,bad\n"), tmp_path / "out.csv"
    flags = ["--model_name_or_path", model, "--test_file", test_file, "--output_file", output, "--no_cuda"]
    flags += ["--max_seq_length", 32]
    predict_glue.main(predict_glue.parse_args(list(map(str, flags))))
    header, first, _ = output.read_text().splitlines()
    assert header == "sentence1,sentence2,prediction" and np.isfinite(float(first.split(",")[2]))


def test_two_models_are_compared_on_a_file(reviews, predecessor, tmp_path, capsys):
    run_here(*own(reviews, tmp_path / "out", predecessor, *NAMES, *COMPRESS))
    capsys.readouterr()
    flags = ["--validation_file", reviews / "dev.csv", "--rounds", 1, "--no_cuda"]  # the length is that of the run
    compare.main(compare.parse_args([str(a) for a in [predecessor, tmp_path / "out", *flags]]))
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{reviews.name}/dev on cpu") and "macro_f1" in head and "label_loyalty" in head
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())
    assert f"{recorded['predecessor']['main']:.4f}" in first and f"{recorded['last']['main']:.4f}" in second


def test_the_metric_of_a_run_on_glue_is_not_that_of_a_file(reviews):
    of_glue = {"arguments": {"task_name": "mrpc", "metric_for_best_model": "f1"}, "pairs": False}
    files = OwnFiles.of({"validation_file": "dev.csv"}, of_glue)
    assert files.main_metric == "" and files.pairs is False
    of_files = {"arguments": {"train_file": "a.csv", "metric_for_best_model": "macro_f1"}}
    assert OwnFiles.of({"validation_file": "dev.csv"}, of_glue, of_files).main_metric == "macro_f1"


def test_runs_of_own_files_are_summarised_with_pictures(reviews, predecessor, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for seed in (1, 2):
        flags = [*COMPRESS, "--seed", seed, "--metric_for_best_model", "macro_f1"]
        run_here(*own(reviews, tmp_path / f"runs/{seed}", predecessor, *NAMES, *flags))
    capsys.readouterr()
    summarize.summarize(tmp_path / "runs", tmp_path / "summary", None)
    (row,) = csv.DictReader((tmp_path / "summary" / "summary.csv").read_text().splitlines())
    assert (row["task"], row["metric"], row["seeds"]) == (f"{reviews.name}/train", "macro_f1", "2")
    names = ["summary_replacing_rate.png", "summary_run.png"]
    assert sorted(path.name for path in (tmp_path / "summary").glob("*.png")) == names


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--task_name", "mrpc"], "--task_name and --data_dir are for GLUE's files, --train_file is for your own"),
        (["--data_dir", "x"], "--task_name and --data_dir are for GLUE's files, --train_file is for your own"),
        (["--text_column_names", "a,b,c"], "--text_column_names a,b,c: a model takes one text, or two"),
        (["--text_column_names", "txt"], "no column 'txt'; there are 'text', 'verdict': give --text_col"),
        (["--text_column_names", "text,verdict"], "'verdict' is the column of the labels"),
        (["--early_stopping_patience", "2"], "--early_stopping_patience needs --evaluate_during_training"),
        (["--do_regression"], "train.csv:2: label 'Fine'; expected a number"),
        (["--max_train_samples", "1"], "all rows to train on (--max_train_samples 1) have the same label"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_with_nothing_written(
    reviews, predecessor, tmp_path, capsys, flags, reason
):
    with pytest.raises(SystemExit) as error:
        run_here(*own(reviews, tmp_path / "out", predecessor, *NAMES, *TRAIN, *flags))
    assert reason in f"{error.value}{capsys.readouterr().err}" and not (tmp_path / "out").exists()


def test_without_data_training_or_validation_files_there_is_nothing_to_do(tmp_path, capsys):
    fixed = ["--model_name_or_path", "m", "--output_dir", str(tmp_path)]
    for flags, reason in [
        (["--do_train"], "no data: give --task_name and --data_dir, or --train_file and --validation_file"),
        (["--do_train", "--validation_file", "a.csv"], "--do_train needs --train_file"),
        (["--do_eval", "--train_file", "a.csv"], "need --validation_file"),
        (["--do_eval", "--validation_file", "a.csv", "--test_file", "b.csv"], "--test_file needs --do_train"),
        (["--do_eval", "--task_name", "mrpc"], "--data_dir is missing"),
        (["--task_name", "mrpc", "--label_column_name", "c"], "--label_column_name is for your own: leave out either"),
    ]:
        with pytest.raises(SystemExit):
            run_glue.parse_args([*fixed, *flags])
        assert reason in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- budgets


def test_the_first_rows_alone_are_used_where_samples_are_limited(reviews, predecessor, tmp_path, caplog):
    caplog.set_level("INFO")
    limits = ["--max_train_samples", 12, "--max_eval_samples", 5]
    run_here(*own(reviews, tmp_path / "few", predecessor, *NAMES, *COMPRESS, *limits))
    assert "12 training rows, 5 dev rows" in caplog.text
    for name, n_rows in (("train.csv", 12), ("dev.csv", 5)):
        header, *rows = list(csv.reader((reviews / name).read_text().splitlines()))
        write_csv(tmp_path / "cut" / name, header, rows[:n_rows])
    run_here(*own(tmp_path / "cut", tmp_path / "same", predecessor, *NAMES, *COMPRESS))
    few, same = (load_file(tmp_path / name / "model.safetensors") for name in ("few", "same"))
    assert all((few[name] == same[name]).all() for name in few)


def test_names_of_batch_sizes_as_in_transformers_are_accepted(reviews, predecessor, tmp_path):
    sizes = ["--per_device_train_batch_size", 4, "--per_device_eval_batch_size", 3]
    run_here(*own(reviews, tmp_path / "out", predecessor, *NAMES, *TRAIN, *sizes))
    arguments = json.loads((tmp_path / "out" / "run.json").read_text())["arguments"]
    assert (arguments["per_gpu_train_batch_size"], arguments["per_gpu_eval_batch_size"]) == (4, 3)


STOPPING = "--do_train --do_eval --evaluate_during_training --max_steps 60 --save_steps 0 --learning_rate 0".split()
STOPPING += "--logging_steps 5 --early_stopping_patience 2 --replacing_rate 0.5 --steps_for_replacing 12".split()


def test_early_stopping_counts_from_the_step_at_rate_1_and_gives_the_best_model(reviews, predecessor, tmp_path, caplog):
    caplog.set_level("INFO")
    run_here(*own(reviews, tmp_path / "out", predecessor, *NAMES, *FLAGS, *STOPPING))
    # Nothing is learned: step 5 is the best. The rate is 1 from step 13 on, so that 15 and 20 count.
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["steps"] == 20 and record["best"]["step"] == 5 and record["last"]["step"] == 20
    assert record["metrics"] == record["best"]["metrics"]
    assert "Stopped early after step 20: no evaluation since step 5 was better" in caplog.text
    assert f"The successor is in {tmp_path / 'out'}: that of checkpoint-best, step 5" in caplog.text
    assert read_results(tmp_path / "out") == record["best"]["metrics"]
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "out" / "checkpoint-best" / name).read_bytes()
    assert "| saved after | 5 optimiser steps |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("best_step", "n_replacing", "stops"), [(20, 12, 30), (5, 12, 20), (5, 0, 15)])
def test_early_stopping_counts_from_the_best_step_or_the_one_at_rate_1(best_step, n_replacing, stops):
    args = SimpleNamespace(early_stopping_patience=2, logging_steps=5)
    run = SimpleNamespace(best_results=lambda: {"step": best_step}, folder="out")
    stalled = [s for s in range(1, 60) if run_glue.has_stalled(args, SimpleNamespace(step=s), run, n_replacing)]
    assert stalled[0] == stops


def test_a_resumed_run_stops_early_where_one_without_a_stop_does(reviews, predecessor, tmp_path, monkeypatch):
    flags = own(reviews, tmp_path / "out", predecessor, *NAMES, *FLAGS, *STOPPING, "--save_steps", 10)
    run_here(*flags)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    # As a process leaves it that is killed after step 20 was saved.
    other = own(reviews, tmp_path / "other", predecessor, *NAMES, *FLAGS, *STOPPING, "--save_steps", 10)

    def killed(run, results):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "finish", killed)
    with pytest.raises(SystemExit):
        run_here(*other)
    monkeypatch.undo()
    assert (tmp_path / "other" / "checkpoint-20" / "training_state.pt").exists()
    run_here(*other, "--resume")
    resumed = json.loads((tmp_path / "other" / "run.json").read_text())
    assert resumed["steps"] == record["steps"] == 20 and resumed["last"]["metrics"] == record["last"]["metrics"]
    names = ["log.jsonl", "eval_results.txt", "model.safetensors", "checkpoint-best/model.safetensors"]
    ours, theirs = ([(tmp_path / of / name).read_bytes() for name in names] for of in ("other", "out"))
    assert ours == theirs
    assert "| saved after | 5 optimiser steps |" in (tmp_path / "other" / "README.md").read_text()
    with pytest.raises(SystemExit, match="--logging_steps was 5, is 1"):
        run_here(*other, "--resume", "--logging_steps", 1)


def test_the_table_is_read_once_more_with_its_own_places(tmp_path):
    table = read_table(write(tmp_path / "a.csv", 'sentence,label\n"a\nb",1\nc,0\n'), (), "label")
    assert table.places == [":2", ":4"] and table.texts == [["a\nb", "c"]]
