"""Damaged and odd input of every kind is read right or refused in one line, in bounded time and memory."""

import codecs
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from fuzzing import CHANGES, bounded, changed, for_each, how_many
from hypothesis import strategies as st

from glue_processors import MAX_LINE, TASKS, GlueDataError, Task, read_examples

# ------------------------------------------------------------------------------------------ TSV files

SENTENCES = [
    "A film.",
    "",
    'He said "no"',
    "naïve café",
    "日本語 🎬",
    "x " * 30,
    "tab-free \\t",
    "\u2028 odd \x0b ends\x85",
]
TSV_TASKS = ["mrpc", "cola", "sts-b", "qqp", "mnli", "rte"]


def valid_file(task: Task, split: str) -> bytes:
    """Ten rows with every column that the task's file has."""
    labelled = split != "test"
    sentences = task.sentences if labelled else task.test_sentences
    n_columns = max(*sentences, task.label, 2) + (2 if labelled and task.label == -1 else 1)
    rows = [[f"column {c}" for c in range(n_columns)]] if task.header or not labelled else []
    for i in range(10):
        row = [f"{i}.{c}" for c in range(n_columns)]
        for column in sentences:
            row[column] = SENTENCES[(i + column) % len(SENTENCES)]
        if labelled:
            row[task.label] = task.labels[i % len(task.labels)] if task.labels else f"{i / 2}"
        rows.append(row)
    if task.skip_short_rows:
        rows.insert(4, ["broken off"])
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def plain_reading(task: Task, split: str, data: bytes) -> list[list]:
    """The sentences, and the label where there is one, of each row, read in the simplest way.

    Raises:
        ValueError: the number of the first line that is wrong, or 0 where all of them together are.
    """
    labelled = split != "test"
    columns = task.sentences if labelled else task.test_sentences
    needed = max(*columns, task.label if labelled else 0) + 1
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        try:
            row = line.decode().removesuffix("\r").split("\t")
        except UnicodeDecodeError:
            raise ValueError(number) from None
        if b"\0" in line:
            raise ValueError(number)
        if number == 1 and labelled and task.label == -1:
            needed = max(needed + 1, len(row))
        if number == 1 and (task.header or not labelled):
            continue
        if len(row) < needed:
            if labelled and task.skip_short_rows:
                continue
            raise ValueError(number)
        rows.append([row[column] for column in columns])
        if labelled and task.labels:
            if row[task.label] not in task.labels:
                raise ValueError(number)
            rows[-1].append(task.labels.index(row[task.label]))
        elif labelled:
            try:
                score = float(row[task.label])
            except ValueError:
                score = -1
            if not 0 <= score <= 5:
                raise ValueError(number)
            rows[-1].append(np.float32(score))
    if not rows:
        raise ValueError(0)
    return rows


def swapped_lines(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[1::-1] + lines[2:])


def as_latin_1(data: bytes) -> bytes:
    return data.decode(errors="replace").encode("latin-1", errors="replace")


WHOLE = {
    "as it is": lambda data: data,
    "with carriage returns": lambda data: data.replace(b"\n", b"\r\n"),
    "with a byte-order mark": lambda data: codecs.BOM_UTF8 + data,
    "in Latin-1": as_latin_1,
    "in UTF-16": lambda data: data.decode(errors="replace").encode("utf-16"),
    "empty": lambda data: b"",
    "the first line alone": lambda data: data.split(b"\n")[0] + b"\n",
    "its lines twice": lambda data: data + data,
    "two lines swapped": swapped_lines,
    "without its last line feed": lambda data: data[:-1],
}
TSV_FILES = st.tuples(
    st.sampled_from(TSV_TASKS),
    st.sampled_from(["train", "dev", "test"]),
    st.sampled_from(["as it is"] * 10 + list(WHOLE)),
    st.just([]) | CHANGES,
)


@how_many(100, 4000)
def test_a_mutated_tsv_file_is_read_as_the_simplest_reading_has_it_or_refused_with_its_line(n, tmp_path):
    def check(example) -> str:
        name, split, whole, changes = example
        task = TASKS[name]
        data = changed(WHOLE[whole](valid_file(task, split)), changes)
        path = tmp_path / getattr(task, split)
        path.write_bytes(data)
        try:
            expected = plain_reading(task, split, data)
        except ValueError as wrong:
            (number,) = wrong.args
            with pytest.raises(GlueDataError) as refused:
                read_examples(task, tmp_path, split)
            reason = str(refused.value)
            place = f"{path}:{number}: " if number else f"{path}:"
            assert reason.startswith(place) and len(reason) < 300 + len(str(path)) and len(reason.splitlines()) == 1
            return "refused"
        found = read_examples(task, tmp_path, split)
        columns = [column for column in (found.first, found.second, found.labels) if column is not None]
        assert list(map(list, zip(*columns, strict=True))) == expected
        assert found.sha256 == hashlib.sha256(data).hexdigest()
        return "read"

    outcomes = for_each(n, TSV_FILES, check)
    assert min(outcomes["read"], outcomes["refused"]) > n / 10


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("cola", "x\t1\t\ta sentence" + "\t" * 10**6),
        ("rte", "0\ta sentence\tanother\t" + "\t" * 10**6 + "not_entailment"),
    ],
)
def test_a_row_of_a_million_columns_is_read(name, row, tmp_path):
    data = valid_file(TASKS[name], "train") + row.encode()
    (tmp_path / "train.tsv").write_bytes(data)
    with bounded(seconds=5, megabytes=30):
        examples = read_examples(TASKS[name], tmp_path, "train")
    assert examples.first[-1] == "a sentence" and examples.labels[-1] == 1 and len(examples.first) == 11


def test_a_line_of_100_megabytes_is_refused_and_takes_little(tmp_path):
    with open(tmp_path / "train.tsv", "wb") as file:
        for _ in range(100):
            file.write(b"x" * 10**6)
    with bounded(seconds=2, megabytes=20), pytest.raises(GlueDataError, match=r"train\.tsv:1: more than 2,097,152"):
        read_examples(TASKS["cola"], tmp_path, "train")


def test_the_longest_line_that_is_taken_is_read_whole(tmp_path):
    row = b"x\t1\t\t"
    (tmp_path / "train.tsv").write_bytes(row + b"y" * (MAX_LINE - len(row) - 1) + b"\n")
    assert len(read_examples(TASKS["cola"], tmp_path, "train").first[0]) == MAX_LINE - len(row) - 1


def make_unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path.write_bytes(valid_file(TASKS["cola"], "train"))
    path.chmod(0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), ": no such file"),
        (lambda path: path.symlink_to(path), ": no such file"),
        (lambda path: path.symlink_to("/proc/self/mem"), ": cannot be read (Input/output error)"),
        (make_unreadable, ": cannot be read (Permission denied)"),
    ],
)
def test_what_is_no_file_that_can_be_read_is_refused_with_its_name(make, reason, tmp_path):
    make(tmp_path / "train.tsv")
    with bounded(seconds=5, megabytes=20), pytest.raises(GlueDataError) as refused:
        read_examples(TASKS["cola"], tmp_path, "train")
    assert str(refused.value).startswith(f"{tmp_path}/train.tsv") and reason in str(refused.value)
