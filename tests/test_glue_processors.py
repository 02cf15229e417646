import re
from pathlib import Path

import pytest

from bert_of_theseus.data.task import DataError
from glue_processors import TASKS, find_task, read_examples

# The files of GLUE, column by column: file, header, {column: content}, number of columns, labels in id order.
BINARY, ENTAILMENT = ["0", "1"], ["entailment", "not_entailment"]
NLI = ["contradiction", "entailment", "neutral"]
FILES = [
    ("cola", "train", "train.tsv", False, {3: "first", 1: "label"}, 4, BINARY),
    ("cola", "dev", "dev.tsv", False, {3: "first", 1: "label"}, 4, BINARY),
    ("cola", "test", "test.tsv", True, {1: "first"}, 2, None),
    ("sst-2", "train", "train.tsv", True, {0: "first", 1: "label"}, 2, BINARY),
    ("sst-2", "dev", "dev.tsv", True, {0: "first", 1: "label"}, 2, BINARY),
    ("sst-2", "test", "test.tsv", True, {1: "first"}, 2, None),
    ("mrpc", "train", "train.tsv", True, {3: "first", 4: "second", 0: "label"}, 5, BINARY),
    ("mrpc", "dev", "dev.tsv", True, {3: "first", 4: "second", 0: "label"}, 5, BINARY),
    ("mrpc", "test", "test.tsv", True, {3: "first", 4: "second"}, 5, None),
    ("sts-b", "train", "train.tsv", True, {7: "first", 8: "second", 9: "label"}, 10, ["0.000", "5.000", "3.25"]),
    ("sts-b", "dev", "dev.tsv", True, {7: "first", 8: "second", 9: "label"}, 10, ["0.000", "5.000", "3.25"]),
    ("sts-b", "test", "test.tsv", True, {7: "first", 8: "second"}, 9, None),
    ("qqp", "train", "train.tsv", True, {3: "first", 4: "second", 5: "label"}, 6, BINARY),
    ("qqp", "dev", "dev.tsv", True, {3: "first", 4: "second", 5: "label"}, 6, BINARY),
    ("qqp", "test", "test.tsv", True, {1: "first", 2: "second"}, 3, None),
    ("mnli", "train", "train.tsv", True, {8: "first", 9: "second", 11: "label"}, 12, NLI),
    ("mnli", "dev", "dev_matched.tsv", True, {8: "first", 9: "second", 15: "label"}, 16, NLI),
    ("mnli", "test", "test_matched.tsv", True, {8: "first", 9: "second"}, 10, None),
    ("mnli-mm", "train", "train.tsv", True, {8: "first", 9: "second", 11: "label"}, 12, NLI),
    ("mnli-mm", "dev", "dev_mismatched.tsv", True, {8: "first", 9: "second", 15: "label"}, 16, NLI),
    ("mnli-mm", "test", "test_mismatched.tsv", True, {8: "first", 9: "second"}, 10, None),
    *(
        (name, split, f"{split}.tsv", True, {1: "first", 2: "second", 3: "label"}, 4, labels)
        for name, labels in (("qnli", ENTAILMENT), ("rte", ENTAILMENT), ("wnli", BINARY))
        for split in ("train", "dev")
    ),
    *((name, "test", "test.tsv", True, {1: "first", 2: "second"}, 3, None) for name in ("qnli", "rte", "wnli")),
    ("ax", "test", "diagnostic.tsv", True, {1: "first", 2: "second"}, 3, None),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file[0]}-{file[1]}")
def test_every_column_of_every_file_is_read(tmp_path, file):
    name, split, file_name, header, columns, n_columns, labels = file
    n_rows = 5
    rows = [["header"] * n_columns] if header else []
    for i in range(n_rows):
        row = [f"column {c} of row {i}" for c in range(n_columns)]
        for column, content in columns.items():
            row[column] = labels[i % len(labels)] if content == "label" else f"{content} sentence {i}"
        rows.append(row)
    (tmp_path / file_name).write_text("\n".join("\t".join(row) for row in rows) + "\n")

    examples = read_examples(TASKS[name], tmp_path, split)
    assert examples.first == [f"first sentence {i}" for i in range(n_rows)]
    assert examples.second == (
        [f"second sentence {i}" for i in range(n_rows)] if "second" in columns.values() else None
    )
    if labels is None:
        assert examples.labels is None
    else:
        ids = [float(label) for label in labels] if name == "sts-b" else list(range(len(labels)))
        assert examples.labels.tolist() == [ids[i % len(labels)] for i in range(n_rows)]


def test_the_table_names_the_folders_metrics_and_main_metrics_of_glue():
    expected = {
        "cola": ("CoLA", ["mcc"], "mcc"),
        "sst-2": ("SST-2", ["acc"], "acc"),
        "mrpc": ("MRPC", ["acc", "f1", "acc_and_f1"], "acc_and_f1"),
        "sts-b": ("STS-B", ["pearson", "spearmanr", "corr"], "corr"),
        "qqp": ("QQP", ["acc", "f1", "acc_and_f1"], "acc_and_f1"),
        "mnli": ("MNLI", ["acc"], "acc"),
        "mnli-mm": ("MNLI", ["acc"], "acc"),
        "qnli": ("QNLI", ["acc"], "acc"),
        "rte": ("RTE", ["acc"], "acc"),
        "wnli": ("WNLI", ["acc"], "acc"),
    }
    assert {n: (t.folder, list(t.metrics), t.main_metric) for n, t in TASKS.items() if n != "ax"} == expected
    assert TASKS["ax"].folder == "diagnostic"


@pytest.mark.parametrize("name", ["MRPC", "mrpc", "SST2", "sst-2", "STSB", "Sts-B", "MNLI-mm", "AX"])
def test_task_names_are_found_in_any_case_and_spelling(name):
    assert find_task(name).name.replace("-", "") == name.lower().replace("-", "")


# ------------------------------------------------------------------------- odd but valid files


def write(folder: Path, text: str | bytes, name: str = "train.tsv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_a_byte_order_mark_a_quote_and_a_missing_last_newline_are_read(tmp_path):
    write(tmp_path, '\ufeffs\tl\n" The end\t1\nsay "no" twice\t0')
    examples = read_examples(TASKS["sst-2"], tmp_path, "train")
    assert examples.first == ['" The end', 'say "no" twice'] and examples.labels.tolist() == [1, 0]


def test_a_byte_order_mark_before_a_file_without_a_header_is_no_part_of_its_first_row(tmp_path):
    write(tmp_path, "\ufeffx\t1\t\tone\ny\t0\t\ttwo\n")
    assert read_examples(TASKS["cola"], tmp_path, "train").first == ["one", "two"]


def test_rows_end_at_line_feeds_only_with_or_without_a_carriage_return(tmp_path):
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj"
    write(tmp_path, f"s\tl\r\n{odd}\t1\r\nend\t0\r\n")
    examples = read_examples(TASKS["sst-2"], tmp_path, "train")
    assert examples.first == [odd, "end"] and examples.labels.tolist() == [1, 0]


def test_short_rows_of_qqp_are_skipped_in_train_and_dev_and_refused_in_test(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    for split in ("train", "dev"):
        write(tmp_path, f"{header}\n0\t1\t2\ta\tb\t1\nbroken off\n2\t1\t2\te\tf\t0\n", f"{split}.tsv")
        assert read_examples(TASKS["qqp"], tmp_path, split).first == ["a", "e"]
    write(tmp_path, "id\tquestion1\tquestion2\n0\ta\tb\n1\tc\n", "test.tsv")
    with pytest.raises(DataError, match=r"test\.tsv:3: 2 columns; expected at least 3"):
        read_examples(TASKS["qqp"], tmp_path, "test")


# ------------------------------------------------------------------------------- bad files


STS_B_ROW = "\t" * 9 + "score\n" + "x\t" * 9


@pytest.mark.parametrize(
    ("task", "text", "reason"),
    [
        ("mrpc", "h\th\th\th\th\n1\t1\t2\ta\tb\n2\t1\t2\ta\tb\n", ":3: label '2'; expected one of 0, 1"),
        ("rte", "i\ta\tb\tl\n0\ta\tb\tmaybe\n", ":2: label 'maybe'; expected one of entailment, not_entailment"),
        ("sts-b", STS_B_ROW + "5.1\n", ":2: label '5.1'; expected a number from 0 to 5"),
        ("sts-b", STS_B_ROW + "nan\n", ":2: label 'nan'; expected a number from 0 to 5"),
        ("sts-b", STS_B_ROW + "high\n", ":2: label 'high'; expected a number from 0 to 5"),
        ("cola", "x\t1\t\tgood\nx\t1\n", ":2: 2 columns; expected at least 4"),
        ("rte", "i\ta\tb\tl\n0\ta\tentailment\n", ":2: 3 columns; expected at least 4"),
        ("sst-2", "s\tl\na\t1\n\nb\t0\n", ":3: 1 columns; expected at least 2"),
        ("sst-2", "", ":1: no rows; expected a header line and the train set"),
        ("sst-2", "s\tl\n", ":1: no rows; expected a header line and the train set"),
        ("cola", "", ":1: no rows; expected the train set"),
        ("qqp", "i\ta\tb\tc\td\tl\nshort\n", ": no complete row; expected rows of at least 6 columns"),
        ("sst-2", b"s\tl\nfine\t1\ncaf\xe9\t1\n", ":3: not UTF-8 (byte 0xe9)"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line_and_what_was_expected(tmp_path, task, text, reason):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/train.tsv{reason}")):
        read_examples(TASKS[task], write(tmp_path, text), "train")


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(DataError, match=r"dev_matched\.tsv: no such file; mnli's dev set"):
        read_examples(TASKS["mnli"], tmp_path, "dev")
    (tmp_path / "MNLI").mkdir()
    with pytest.raises(DataError, match=rf"dev_matched\.tsv: no such file; give {tmp_path}/MNLI"):
        read_examples(TASKS["mnli"], tmp_path, "dev")
    with pytest.raises(DataError, match="ax has no train file"):
        read_examples(TASKS["ax"], tmp_path, "train")
