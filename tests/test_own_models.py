"""docs/own_models.md: its examples run as they stand, on models and files made on the spot."""

import random
import re
from pathlib import Path

import pytest
import torch
from conftest import BAD, GOOD, OTHER, save_bert
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "own_models.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL)
TOKENS, IMAGES, PAIRS = EXAMPLES


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, where path/to/encoder is a small BERT."""
    encoder = save_bert(tmp_path / "path" / "to" / "encoder", hidden_size=64)
    # Without a head, and with weights small enough to learn quickly.
    config = AutoConfig.from_pretrained(encoder, initializer_range=0.05, hidden_dropout_prob=0.0)
    AutoModel.from_config(config).save_pretrained(encoder)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def scores(code: str, capsys) -> list[float]:
    """What the example prints of predecessor and successor."""
    exec(compile(code, DOCUMENT.name, "exec"), {})
    lines = [line for line in capsys.readouterr().out.splitlines() if "predecessor" in line or "successor" in line]
    return [float(line.split()[-1]) for line in lines]


@pytest.mark.parametrize("code", EXAMPLES, ids=["tokens", "images", "pairs"])
def test_an_example_is_short(code):
    assert len([line for line in code.splitlines() if line.strip()]) < 40


def test_the_token_classifier(folder, capsys):
    tags = dict.fromkeys(GOOD, "B-GOOD") | dict.fromkeys(BAD, "B-BAD") | dict.fromkeys(OTHER, "O")
    rng = random.Random(0)
    for name, n_rows in (("train", 640), ("dev", 32)):
        blocks = ["\n".join(f"{w} NN {tags[w]}" for w in rng.choices(list(tags), k=6)) for _ in range(n_rows)]
        (folder / f"{name}.txt").write_text("-DOCSTART- -X- O\n\n" + "\n\n".join(blocks) + "\n")
    predecessor, successor = scores(TOKENS, capsys)
    assert predecessor > 0.2 and successor > 0.5
    model = AutoModelForTokenClassification.from_pretrained("path/to/successor")
    assert model.config.num_hidden_layers == 2 and model.config.id2label == {0: "O", 1: "B-BAD", 2: "B-GOOD"}
    assert AutoTokenizer.from_pretrained("path/to/successor")("good").word_ids() == [None, 0, None]


def test_the_image_classifier(folder, capsys):
    predecessor, successor = scores(IMAGES, capsys)
    assert predecessor > 0.85 and successor > 0.85
    for successor_folder in ("path/to/successor", "digits/checkpoint-100/successor"):
        assert AutoModelForImageClassification.from_pretrained(successor_folder).config.num_hidden_layers == 3


def test_the_pairs_of_sentences(folder, capsys):
    rng = random.Random(0)
    for name, n_rows in (("train", 256), ("dev", 64)):
        rows = [("sentence1", "sentence2", "score")]
        for i in range(n_rows):
            rows.append((" ".join(rng.choices(GOOD, k=4)), " ".join(rng.choices([GOOD, BAD][i % 2], k=4)), "50"[i % 2]))
        (folder / f"{name}.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    predecessor, successor = scores(PAIRS, capsys)
    assert predecessor > 0.3 and successor > 0.3
    assert AutoModel.from_pretrained("path/to/successor").config.num_hidden_layers == 2
    assert torch.load("path/to/successor/head.pt")["weight"].shape == (128, 64)
