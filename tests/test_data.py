"""Features and their cache, metrics and loyalty."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_roberta
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoTokenizer

from bert_of_theseus.data.features import FeaturesCache, tokenize
from bert_of_theseus.data.scores import chance_score, compute_loyalty, compute_metrics
from bert_of_theseus.data.task import Examples
from glue_processors import LABELLED, TASKS


@pytest.fixture(scope="module")
def tokenizer(bert_folder):
    return AutoTokenizer.from_pretrained(bert_folder)


PAIRS = Examples(["good film", "a"], ["the cat is bad", "dog"], np.array([1, 0]), "sha of the file")


def test_a_batch_is_padded_to_its_longest_row_and_no_further(tokenizer):
    features = tokenize(PAIRS, tokenizer, 128, token_type_ids=True)
    assert features.lengths.tolist() == [9, 5]
    batch = features.batch([1, 0])
    expected = tokenizer(["a", "good film"], ["dog", "the cat is bad"], padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], expected[name]), name
    assert batch["labels"].tolist() == [0, 1]
    assert features.batch([1])["input_ids"].shape == (1, 5)


def test_padding_uses_the_tokenizers_own_id(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_roberta(tmp_path))
    features = tokenize(PAIRS, tokenizer, 128, token_type_ids=False)
    batch = features.batch([0, 1])
    expected = tokenizer(PAIRS.first, PAIRS.second, padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert torch.equal(batch["input_ids"], expected["input_ids"]) and (batch["input_ids"] == 1).any()
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_long_pairs_are_cut_to_max_seq_length_the_longer_sentence_first(tokenizer):
    examples = PAIRS._replace(first=["good " * 50, "a"], second=["the cat", "dog"])
    features = tokenize(examples, tokenizer, 12, token_type_ids=True)
    assert features.lengths.tolist() == [12, 5]
    assert tokenizer.decode(features.input_ids[:12]).split()[-3:] == ["the", "cat", "[SEP]"]


def test_tokenising_in_batches_gives_every_row_in_order(tokenizer):
    n = 2500
    examples = Examples(["good " * (i % 7) for i in range(n)], None, np.arange(n) % 2, "")
    features = tokenize(examples, tokenizer, 128, token_type_ids=True)
    assert features.lengths.tolist() == [2 + i % 7 for i in range(n)]


def in_cache(folder: Path) -> list[Path]:
    return sorted(folder.glob("cached_*"))


def cached(examples, tokenizer, folders, task="mrpc", length=16, types=True, split="dev", overwrite=False):
    return FeaturesCache(folders, overwrite).features(task, split, examples, tokenizer, length, types)


def test_cached_features_are_those_of_the_tokenizer(tokenizer, tmp_path):
    first = cached(PAIRS, tokenizer, [tmp_path])
    assert len(in_cache(tmp_path)) == 1
    second = cached(PAIRS, tokenizer, [tmp_path])
    for name in ("input_ids", "lengths", "token_type_ids", "labels"):
        expected = getattr(tokenize(PAIRS, tokenizer, 16, True), name)
        for features in (first, second):
            assert np.array_equal(getattr(features, name), expected)
            assert getattr(features, name).dtype == expected.dtype


def test_the_cache_is_read_and_not_made_again(tokenizer, tmp_path):
    cached(PAIRS, tokenizer, [tmp_path])
    same_key = PAIRS._replace(first=["never", "tokenised"])  # only the file's hash counts
    assert np.array_equal(
        cached(same_key, tokenizer, [tmp_path]).input_ids, cached(PAIRS, tokenizer, [tmp_path]).input_ids
    )
    other = cached(same_key, tokenizer, [tmp_path], overwrite=True)
    assert not np.array_equal(other.input_ids, tokenize(PAIRS, tokenizer, 16, True).input_ids)


def test_the_cache_key_changes_with_all_that_changes_its_content(tokenizer, tmp_path):
    cased = AutoTokenizer.from_pretrained(tokenizer.name_or_path, do_lower_case=False)
    grown = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    grown.add_tokens(["film"])
    left = AutoTokenizer.from_pretrained(tokenizer.name_or_path, truncation_side="left")
    variants = [
        {},
        {"examples": PAIRS._replace(sha256="another file")},
        {"tokenizer": cased},
        {"tokenizer": grown},
        {"tokenizer": left},
        {"task": "qqp"},
        {"length": 17},
        {"types": False},
        {"split": "train"},
    ]
    for i, change in enumerate(variants, start=1):
        cached(**{"examples": PAIRS, "tokenizer": tokenizer, "folders": [tmp_path]} | change)
        assert len(in_cache(tmp_path)) == i, change


def test_the_cache_key_does_not_depend_on_what_the_tokenizer_did_before(bert_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    cached(PAIRS, tokenizer, [tmp_path])
    tokenizer(["good", "bad film"], truncation=True, max_length=5, padding=True)
    cached(PAIRS, tokenizer, [tmp_path])
    assert len(in_cache(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-400] + b"x" * 400]
)
def test_a_damaged_cache_is_made_anew(tokenizer, tmp_path, damage):
    expected = cached(PAIRS, tokenizer, [tmp_path])
    (path,) = in_cache(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert np.array_equal(cached(PAIRS, tokenizer, [tmp_path]).input_ids, expected.input_ids)
    assert path.read_bytes() != damage(whole)


def test_a_cache_that_holds_a_pickle_is_not_unpickled(tokenizer, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    cached(PAIRS, tokenizer, [tmp_path])
    (path,) = in_cache(tmp_path)
    np.savez(path, key=np.array([Trap()], dtype=object))
    cached(PAIRS, tokenizer, [tmp_path])
    assert not (tmp_path / "sprung").exists()


def test_where_the_data_folder_takes_no_file_the_cache_lies_in_the_next_with_one_warning(tokenizer, tmp_path, caplog):
    # A name that is a file takes no files, not even from root, whom no permission stops.
    data_dir = tmp_path / "data"
    data_dir.write_text("")
    output_dir = tmp_path / "output"
    output_dir.mkdir()
    for split in ("train", "dev"):
        cached(PAIRS, tokenizer, [data_dir, output_dir], split=split)
    assert len(in_cache(output_dir)) == 2
    assert [str(data_dir) in record.message for record in caplog.records] == [True]
    cached(PAIRS, tokenizer, [data_dir, output_dir], split="dev")
    assert len(in_cache(output_dir)) == 2


# -------------------------------------------------------------------------------- metrics


def test_loyalty_is_agreement_with_the_predecessor_whatever_the_labels():
    ours, theirs = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]]), np.array([[1.0, 0, 0], [0, 1, 0], [3, 0, 0]])
    loyalty = compute_loyalty(TASKS["mnli"], ours, theirs)
    assert loyalty["label_loyalty"] == pytest.approx(2 / 3)
    p, q = (np.exp(of) / np.exp(of).sum(1, keepdims=True) for of in (ours, theirs))
    middle = (p + q) / 2
    divergence = [(a * np.log2(a / middle)).sum(1) / 2 for a in (p, q)]
    expected = 1 - np.sqrt(np.maximum(0, divergence[0] + divergence[1]))
    assert loyalty["probability_loyalty"] == pytest.approx(expected.mean())
    assert compute_loyalty(TASKS["mnli"], ours, ours) == {"label_loyalty": 1, "probability_loyalty": 1}
    rng = np.random.default_rng(0)
    near = rng.normal(size=(500, 2))
    assert compute_loyalty(TASKS["mrpc"], near + 1e-9, near)["probability_loyalty"] == pytest.approx(1, abs=1e-6)
    opposite = compute_loyalty(TASKS["mrpc"], np.array([[99.0, 0]]), np.array([[0, 99.0]]))
    assert opposite == {"label_loyalty": 0, "probability_loyalty": pytest.approx(0)}
    scores = np.array([[1.0], [2.0], [4.0]])
    assert compute_loyalty(TASKS["sts-b"], scores, 3 - 2 * scores) == {"score_correlation": pytest.approx(-1)}
    assert compute_loyalty(TASKS["sts-b"], scores, np.ones((3, 1))) == {"score_correlation": 0}


@pytest.mark.parametrize("name", LABELLED)
def test_metrics_are_those_of_scikit_learn_and_scipy(name):
    rng = np.random.default_rng(0)
    task = TASKS[name]
    for _ in range(20):
        if task.labels:
            predictions, labels = rng.integers(0, task.num_labels, (2, 60))
        else:
            predictions, labels = rng.uniform(0, 5, (2, 60))
        expected = {}
        if "acc" in task.metrics:
            expected["acc"] = accuracy_score(labels, predictions)
        if "f1" in task.metrics:
            expected["f1"] = f1_score(labels, predictions)
            expected["acc_and_f1"] = (expected["acc"] + expected["f1"]) / 2
        if "mcc" in task.metrics:
            expected["mcc"] = matthews_corrcoef(labels, predictions)
        if "corr" in task.metrics:
            expected["pearson"] = pearsonr(labels, predictions)[0]
            expected["spearmanr"] = spearmanr(labels, predictions)[0]
            expected["corr"] = (expected["pearson"] + expected["spearmanr"]) / 2
        metrics = compute_metrics(task, predictions, labels)
        assert metrics == pytest.approx(expected, abs=1e-12)
        assert list(metrics) == list(task.metrics)


def test_the_correlation_with_a_constant_or_with_no_number_counts_as_0():
    labels = np.linspace(0, 5, 10)
    for predictions in (np.full(10, 2.5), np.full(10, np.nan), np.full(10, np.inf)):
        assert compute_metrics(TASKS["sts-b"], predictions, labels) == {"pearson": 0, "spearmanr": 0, "corr": 0}


def test_chance_is_the_best_constant_prediction():
    labels = np.array([1, 1, 1, 0])
    assert chance_score(TASKS["sst-2"], labels) == 0.75
    assert chance_score(TASKS["cola"], labels) == 0
    assert chance_score(TASKS["mrpc"], labels) == pytest.approx((0.75 + 6 / 7) / 2)
    assert chance_score(TASKS["sts-b"], labels.astype(float)) == 0
