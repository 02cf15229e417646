"""The demo GLUE: the real layout, the same files from the same seed, and labels that the words alone do not give."""

import re
import subprocess
import sys
from pathlib import Path

import make_demo_glue
import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from glue_processors import TASKS, compute_metrics, find_task, read_examples

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_demo_glue.py"
ROWS = {"train": 600, "dev": 300, "test": 30}
LABELLED = [name for name, task in TASKS.items() if task.metrics]
NEGATIONS = ("not", "never", "hardly", "far", "anything")


def run_script(*args) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(folder: Path, name: str, split: str):
    task = find_task(name)
    return read_examples(task, folder / task.folder, split)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    sizes = [text for split, n_rows in ROWS.items() for text in (f"--{split}_rows", n_rows)]
    run = run_script(folder, *sizes)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 10  # nine tasks and the diagnostic set
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_every_file_is_read_with_as_many_rows_as_asked_for_and_every_label_occurs(demo, name):
    task = TASKS[name]
    for split, n_rows in ROWS.items():
        if getattr(task, split) is None:
            continue
        examples = read(demo, name, split)
        assert len(examples.first) == n_rows
        assert all(text.strip() for text in (*examples.first, *(examples.second or ())))
        if split == "test":
            assert examples.labels is None
        elif task.labels:
            shares = np.bincount(examples.labels, minlength=task.num_labels) / n_rows
            assert (shares > 0.6 / task.num_labels).all()
        else:
            assert examples.labels.min() == 0 and examples.labels.max() == 5


@pytest.mark.parametrize(
    ("file", "header"),
    [
        ("MRPC/train.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"),
        ("QQP/test.tsv", "id\tquestion1\tquestion2"),
        ("QNLI/dev.tsv", "index\tquestion\tsentence\tlabel"),
        ("SST-2/test.tsv", "index\tsentence"),
    ],
)
def test_headers_and_rows_are_as_long_as_in_glue(demo, file, header):
    lines = (demo / file).read_text().splitlines()
    assert lines[0] == header
    assert {line.count("\t") for line in lines} == {header.count("\t")}


def test_scores_have_three_decimals_and_cola_marks_what_is_not_acceptable(demo):
    assert all(re.fullmatch(r".*\t\d\.\d{3}", line) for line in (demo / "STS-B/dev.tsv").read_text().splitlines()[1:])
    rows = [line.split("\t") for line in (demo / "CoLA/train.tsv").read_text().splitlines()]
    assert all((mark == "*") == (label == "0") for _, label, mark, _ in rows)


@pytest.mark.parametrize("name", LABELLED)
def test_no_row_is_shared_between_train_dev_and_test_or_occurs_twice(demo, name):
    rows = []
    for split in ROWS:
        examples = read(demo, name, split)
        rows += zip(examples.first, examples.second or examples.first, strict=True)
    assert len({frozenset(row) for row in rows}) == len(rows) == sum(ROWS.values())


def test_mismatched_sets_have_other_words(demo):
    words = [
        {word for text in read(demo, name, "dev").first for word in text.lower().rstrip(".").split()}
        for name in ("mnli", "mnli-mm")
    ]
    assert {"not", "the", "by"} <= words[0] & words[1]
    assert len(words[0] & words[1]) < 0.2 * len(words[0] | words[1])


def test_the_seed_fixes_the_bytes_whatever_else_is_made(demo, tmp_path):
    sizes = ("--dev_rows", ROWS["dev"], "--test_rows", ROWS["test"], "--train_rows", 20)
    # In any case, by a folder's or run_glue.py's name, and twice.
    assert run_script(tmp_path / "same", "--tasks", "mrpc", "AX", "sst2", "MRPC", *sizes).returncode == 0
    assert run_script(tmp_path / "other", "--tasks", "MRPC", *sizes, "--seed", 43).returncode == 0
    same, other, reference = files_in(tmp_path / "same"), files_in(tmp_path / "other"), files_in(demo)
    assert {file.split("/")[0] for file in same} == {"MRPC", "SST-2", "diagnostic"}
    for file, content in same.items():
        assert reference[file].startswith(content) or "train" in file
        assert content != other.get(file)


def bag_of_words_score(train, dev, task, joined: bool) -> float:
    """Dev accuracy (of a score: the mean correlation) of a linear model of word counts, of the pair or of each part."""
    parts = [(train.first, dev.first)] + ([(train.second, dev.second)] if train.second else [])
    if joined:
        parts = [tuple([" ".join(texts) for texts in zip(*split, strict=True)] for split in zip(*parts, strict=True))]
    counts = []
    for train_texts, dev_texts in parts:
        vectorizer = CountVectorizer(token_pattern=r"\w+").fit(train_texts)
        counts.append([vectorizer.transform(train_texts), vectorizer.transform(dev_texts)])
    train_counts, dev_counts = (scipy.sparse.hstack(split).tocsr() for split in zip(*counts, strict=True))
    if task.labels is None:
        predictions = Ridge().fit(train_counts, train.labels).predict(dev_counts)
        return compute_metrics(task, predictions, dev.labels)["corr"]
    return LogisticRegression(max_iter=1000).fit(train_counts, train.labels).score(dev_counts, dev.labels)


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("name", LABELLED)
def test_counting_words_does_not_solve_a_task(demo, name, joined):
    score = bag_of_words_score(read(demo, name, "train"), read(demo, name, "dev"), find_task(name), joined)
    assert score < (0.3 if name == "sts-b" else 0.65)


def test_sentiment_follows_from_the_adjective_and_the_negation(demo):
    examples = read(demo, "sst-2", "train")
    polarity: dict[str, set[bool]] = {}
    for text, label in zip(examples.first, examples.labels, strict=True):
        words = text.split()
        if not {"although", "but"} & set(words).difference({"but"} if "anything but" in text else ()):
            polarity.setdefault(words[-2], set()).add(bool(label) != any(word in words for word in NEGATIONS))
    assert len(polarity) > 20
    assert all(len(values) == 1 for values in polarity.values())  # an adjective is good or bad, always


def test_negation_decides_between_entailment_and_contradiction(demo):
    task = find_task("mnli-mm")
    examples = read(demo, "mnli-mm", "dev")
    for first, second, label in zip(examples.first, examples.second, examples.labels, strict=True):
        one_negated = (" not " in first) != (" not " in second)
        assert not one_negated or task.labels[label] == "contradiction"


def test_a_question_for_the_time_is_answered_by_a_sentence_with_a_time(demo):
    examples = read(demo, "qnli", "train")
    time = re.compile(r"\b(last|yesterday|on Monday|on Friday|in the (morning|evening)|at noon)\b", re.IGNORECASE)
    for question, answer, label in zip(examples.first, examples.second, examples.labels, strict=True):
        if question.startswith(("When", "At what time")) and label == 0:
            assert time.search(answer), (question, answer)
        if question.startswith(("Where", "In what place")) and label == 0:
            assert not time.search(answer), (question, answer)


def test_similarity_is_highest_for_pairs_that_agree_in_every_part(demo):
    examples = read(demo, "sts-b", "train")
    places = re.compile(r"\b(?:in|at|near|on) the \w+", re.IGNORECASE)
    for first, second, score in zip(examples.first, examples.second, examples.labels, strict=True):
        same_place = places.search(first)[0].lower() == places.search(second)[0].lower()
        assert same_place or score < 4.3
        assert not same_place or score > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "MRPC", "SQuAD"], "there is no SQuAD; there are CoLA, SST-2, MRPC"),
        (["--train_rows", "0"], "0 is not at least 1"),
        (["--dev_rows", "many"], "many"),
        (["--tasks", "WNLI", "RTE", "--train_rows", "9"], "train.tsv is there already; --overwrite"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(tmp_path, arguments, message):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE/train.tsv").write_text("mine")
    run = run_script(tmp_path, *arguments)
    assert run.returncode == 2
    assert message in run.stderr and len(run.stderr.splitlines()) == 1
    assert files_in(tmp_path) == {"RTE/train.tsv": b"mine"}


def test_more_rows_than_a_task_can_make_are_refused():
    one_row = make_demo_glue.Task("WNLI", lambda rng, words: make_demo_glue.Row("1", "a", "b"), ())
    file = make_demo_glue.File("train.tsv", "train", "index,sentence1,sentence2,label")
    assert len(make_demo_glue.draw_rows(one_row, file, 1, 42, set())) == 1
    with pytest.raises(ValueError, match=r"WNLI: cannot make 2 different rows for train\.tsv; ask for fewer"):
        make_demo_glue.draw_rows(one_row, file, 2, 42, set())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    run = run_script(tmp_path / "file", "--tasks", "WNLI")
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1


def test_overwrite_replaces_and_leaves_no_other_file(tmp_path):
    arguments = (tmp_path, "--tasks", "WNLI", "--train_rows", 5, "--dev_rows", 5, "--test_rows", 5)
    assert run_script(*arguments).returncode == 0
    before = files_in(tmp_path)
    (tmp_path / "WNLI/dev.tsv").write_text("damaged")
    assert run_script(*arguments, "--overwrite").returncode == 0
    assert files_in(tmp_path) == before


def test_help_names_the_tasks_and_imports_nothing_heavy():
    code = "import sys, make_demo_glue; print({'torch', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
    assert "STS-B" in run_script("--help").stdout
