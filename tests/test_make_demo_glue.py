"""The demo GLUE: the real layout, the same files from the same seed, and labels that single words do not give away."""

import re
from pathlib import Path

import make_demo_glue
import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from bert_of_theseus.run.command_line import UserError
from glue_processors import LABELLED, TASKS, read_examples

ROWS = {"train": 600, "dev": 300, "test": 30}
SIZES = [text for split, n_rows in ROWS.items() for text in (f"--{split}_rows", str(n_rows))]


def make(folder: Path, *arguments: str) -> dict[str, bytes]:
    """The files that a call makes, by path."""
    make_demo_glue.main([str(folder), *arguments])
    return files_in(folder)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    make(folder, *SIZES)
    return folder


def read(folder: Path, name: str, split: str):
    return read_examples(TASKS[name], folder / TASKS[name].folder, split)


def rows(examples) -> list[tuple[str, ...]]:
    """The sentences of each row."""
    return list(zip(*filter(None, (examples.first, examples.second)), strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_every_file_is_read_with_as_many_rows_as_asked_for_and_balanced_labels(demo, name):
    task = TASKS[name]
    for split, n_rows in ROWS.items():
        if getattr(task, split):
            examples = read(demo, name, split)
            assert len(examples.first) == n_rows
            assert all(text.strip() for row in rows(examples) for text in row)
            if split != "test":
                _, counts = np.unique(examples.labels, return_counts=True)
                assert len(counts) == (task.num_labels if task.labels else 5)
                assert (counts > 0.7 * n_rows / len(counts)).all()


def test_headers_are_glues_and_rows_are_as_long(demo):
    for file, header in {
        "MRPC/train.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel",
        "QQP/test.tsv": "id\tquestion1\tquestion2",
    }.items():
        lines = (demo / file).read_text().splitlines()
        assert lines[0] == header
        assert {line.count("\t") for line in lines} == {header.count("\t")}


@pytest.mark.parametrize("name", LABELLED)
def test_no_sentences_occur_twice_in_train_dev_and_test_sets(demo, name):
    found = [frozenset(row) for split in ROWS for row in rows(read(demo, name, split))]
    assert len(set(found)) == len(found) == sum(ROWS.values())


def test_mismatched_sets_are_about_other_people(demo):
    matched, mismatched = (" ".join(read(demo, name, "dev").first).lower() for name in ("mnli", "mnli-mm"))
    for text, here, elsewhere in ((matched, "doctor", "king"), (mismatched, "king", "doctor")):
        assert here in text and elsewhere not in text


def test_the_seed_fixes_the_bytes_whatever_else_is_made(demo, tmp_path):
    sizes = [*SIZES[2:], "--train_rows", "20"]
    # In any case, by a folder's or run_glue.py's name, and twice.
    same = make(tmp_path / "same", "--tasks", "mrpc", "AX", "sst2", "Diagnostic", "MRPC", *sizes)
    other = make(tmp_path / "other", "--tasks", "MRPC", *sizes, "--seed", "43")
    reference = files_in(demo)
    assert {file.split("/")[0] for file in same} == {"MRPC", "SST-2", "diagnostic"}
    for file, content in same.items():
        assert reference[file] == content or "train" in file
        assert content != other.get(file)


def words(sentences: tuple[str, ...]) -> list[str]:
    return [f"{word} in {part}" for part, text in enumerate(sentences) for word in re.findall(r"\w+", text)]


@pytest.mark.parametrize("name", LABELLED)
def test_a_linear_model_of_word_counts_stays_near_chance(demo, name):
    task = TASKS[name]
    model = make_pipeline(CountVectorizer(analyzer=words), LogisticRegression() if task.labels else Ridge())
    train, dev = read(demo, name, "train"), read(demo, name, "dev")
    score = model.fit(rows(train), train.labels).score(rows(dev), dev.labels)  # accuracy, or R² of the similarity
    assert score < (1 / task.num_labels + 0.15 if task.labels else 0.15)


def test_sentiment_follows_from_the_adjective_and_the_negation(demo):
    examples = read(demo, "sst-2", "train")
    for text, label in zip(examples.first, examples.labels, strict=True):
        main = re.sub("although .* , |.* , but | , although .*", "", text)
        *_, adjective = main.removesuffix(" .").split()
        negated = re.search(r"\b(not|never|hardly|far)\b", main) is not None
        assert label == ((adjective in make_demo_glue.GOOD) != negated), text


def meaning(text: str) -> tuple:
    """Agent, action, patient, detail, and whether it is negated."""
    detail = next(detail for detail in make_demo_glue.ALL_DETAILS if detail.lower() in text.lower())
    pattern = r"[Tt]he (\w+) (was )?(did not |not )?(\w+) (?:by )?the (\w+)"
    agent, passive, negated, said, patient = re.search(pattern, text).groups()
    if passive:
        agent, patient = patient, agent
    action = next(
        verbs for verbs, _ in make_demo_glue.ACTIONS for verb in verbs if said in (verb, f"{verb}ed", f"{verb}d")
    )
    return agent, action, patient, detail, bool(negated)


@pytest.mark.parametrize(("name", "same"), [("mrpc", "1"), ("mnli", "entailment"), ("mnli-mm", "entailment")])
def test_a_pair_is_a_paraphrase_or_entailed_exactly_when_both_sentences_tell_of_the_same_event(demo, name, same):
    examples = read(demo, name, "dev")
    for row, label in zip(rows(examples), examples.labels, strict=True):
        assert (meaning(row[0]) == meaning(row[1])) == (TASKS[name].labels[label] == same), row


def test_negation_decides_between_entailment_and_contradiction(demo):
    examples = read(demo, "mnli", "dev")
    for row, label in zip(rows(examples), examples.labels, strict=True):
        first, second = map(meaning, row)
        assert first[4] == second[4] or TASKS["mnli"].labels[label] == "contradiction", row


def test_similarity_counts_the_parts_that_are_the_same(demo):
    examples = read(demo, "sts-b", "train")
    for row, score in zip(rows(examples), examples.labels, strict=True):
        parts = list(zip(*map(meaning, row), strict=True))[:4]
        assert score == 1.25 * sum(one == other for one, other in parts), row


def test_a_sentence_answers_a_question_only_with_a_detail_of_the_kind_that_is_asked_for(demo):
    examples = read(demo, "qnli", "train")
    for question, answer, label in zip(examples.first, examples.second, examples.labels, strict=True):
        details = make_demo_glue.DETAILS[question.split()[0].lower()]
        assert any(detail in answer[0].lower() + answer[1:] for detail in details) or label == 1, (question, answer)


def test_an_unknown_task_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        make(tmp_path, "--tasks", "MRPC", "SQuAD")
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no SQuAD; there are CoLA, SST-2, MRPC" in line


def test_existing_files_are_replaced_only_with_overwrite(tmp_path):
    small = ["--tasks", "RTE", "--train_rows", "5", "--dev_rows", "5", "--test_rows", "5"]
    made = make(tmp_path, *small)
    (tmp_path / "RTE/test.tsv").unlink()
    (tmp_path / "RTE/dev.tsv").write_text("mine")
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=r"dev\.tsv is there already; --overwrite"):
        make(tmp_path, *small)
    assert files_in(tmp_path) == before
    assert make(tmp_path, *small, "--overwrite") == made


def test_more_rows_than_a_task_can_make_are_refused_and_nothing_is_written(tmp_path, monkeypatch):
    layout = make_demo_glue.LAYOUTS["WNLI"]._replace(draw=lambda label, rng, people: ("one", f"other {label}"))
    monkeypatch.setitem(make_demo_glue.LAYOUTS, "WNLI", layout)
    with pytest.raises(UserError, match=r"WNLI: cannot make 3 different rows for test\.tsv; ask for fewer"):
        make(tmp_path, "--tasks", "RTE", "WNLI", "--test_rows", "3")
    assert files_in(tmp_path) == {}
