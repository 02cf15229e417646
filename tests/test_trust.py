"""Nothing that is loaded runs code: each trap springs when it is loaded carelessly, which is tried first."""

import io
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import save_bert, write_glue
from safetensors.torch import load_file
from test_resume import stopped_run
from test_run_glue import arguments, read_results, run_here
from transformers import AutoConfig

from bert_of_theseus.classifier import ModelError, load_classifier
from bert_of_theseus.data.task import DataError
from bert_of_theseus.run.folder import STATE
from glue_processors import TASKS, read_examples

ROOT = Path(__file__).parents[1]


class MakesFolder:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def marker(tmp_path) -> Path:
    """The folder that a trap makes when it springs."""
    return tmp_path / "sprung"


def write_trap(path: Path, marker: Path, content: dict | None = None) -> None:
    """Write tensors, and code among them, as torch.save does; the code is run where they are loaded carelessly."""
    torch.save((content or {}) | {"classifier.bias": MakesFolder(marker)}, path)
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    marker.rmdir()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data") / "MRPC", "mrpc", n_train=16, n_dev=8)


@pytest.fixture
def model(tmp_path) -> Path:
    return save_bert(tmp_path / "model", n_layer=2)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_code_among_a_model_s_weights_is_not_run(name, marker, model):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    write_trap(model / name, marker, weights)
    with pytest.raises(ModelError, match="no model could be loaded"):
        load_classifier(str(model), ("0", "1"), max_seq_length=32)
    assert not marker.exists()


def test_code_in_the_state_of_an_unfinished_run_is_not_run(marker, model, data, tmp_path, monkeypatch):
    args = arguments("mrpc", model, data, tmp_path / "run", "--do_train", "--max_steps", 4, "--replacing_rate", 0.9)
    stopped_run(2, monkeypatch, *args)
    (state,) = tmp_path.glob(f"run/checkpoint-*/{STATE}")
    write_trap(state, marker)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        run_here(*args, "--resume")
    assert not marker.exists()


def test_code_in_a_cache_of_features_is_not_run_and_the_cache_is_made_anew(marker, model, data, tmp_path, caplog):
    run_here(*arguments("mrpc", model, data, tmp_path / "expected", "--do_eval"))
    (path,) = data.glob("cached_dev_*.npz")
    with np.load(path) as arrays:
        sound = dict(arrays)
    np.savez(path, allow_pickle=True, **sound | {"labels": np.array([MakesFolder(marker)], dtype=object)})
    run_here(*arguments("mrpc", model, data, tmp_path / "output", "--do_eval"))
    assert not marker.exists() and f"{path} is damaged" in caplog.text
    assert read_results(tmp_path / "output") == read_results(tmp_path / "expected")


EVIL = """
from pathlib import Path
Path({marker!r}).mkdir()
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
class EvilConfig(BertConfig):
    model_type = {model_type!r}
class EvilModel(BertForSequenceClassification):
    config_class = EvilConfig
class EvilTokenizer(BertTokenizerFast):
    pass
"""


@pytest.fixture
def modules(tmp_path, monkeypatch) -> None:
    """Where transformers puts the code that it is allowed to load."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


def edit(path: Path, **more) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.mark.parametrize("model_type", ["bert", "evil"])
def test_code_in_a_model_s_folder_is_not_run_nor_named_in_what_is_saved(model_type, marker, model, modules, tmp_path):
    (model / "evil.py").write_text(EVIL.format(marker=str(marker), model_type=model_type))
    classes = {"AutoConfig": "evil.EvilConfig", "AutoModelForSequenceClassification": "evil.EvilModel"}
    edit(model / "config.json", auto_map=classes, model_type=model_type)
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]})
    AutoConfig.from_pretrained(model, trust_remote_code=True)
    marker.rmdir()
    try:
        classifier = load_classifier(str(model), ("0", "1"), max_seq_length=32)
    except ModelError as error:
        assert "could be loaded" in str(error)
    else:
        assert model_type == "bert"
        classifier.model.save_pretrained(tmp_path / "saved")
        classifier.tokenizer.save_pretrained(tmp_path / "saved")
        assert not [path for path in (tmp_path / "saved").glob("*.json") if "vil" in path.read_text()]
    assert not marker.exists()


def test_no_source_of_ours_trusts_what_it_loads():
    sources = [*ROOT.glob("*.py"), *ROOT.glob("bert_of_theseus/**/*.py"), *ROOT.glob("scripts/*.py")]
    assert len(sources) > 20
    for path in sources:
        text = path.read_text()
        for word in ("import pickle", "shell=True", "os.system", "trust_remote_code=True", "allow_pickle=True"):
            assert word not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


# ------------------------------------------------------------------------------ a fuzz test of the TSV reader


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them, or whole stretches, replaced, left out, or doubled."""
    pieces = [b"\t", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b'"', "é".encode(), b"0", b"\t\t\t\t"]
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 5, 40)))
        data = data[:start] + rng.choice([*pieces, b"", data[start:end] * 2]) + data[end:]
    return data


def simple_reading(data: bytes, name: str) -> tuple[list[str], list[str | None], list[str]]:
    """(first sentences, second ones, labels) of a train file by the plainest code; some error where it is no such."""
    lines = data.removeprefix(b"\xef\xbb\xbf").decode().split("\n")
    rows = [line.removesuffix("\r").split("\t") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if name == "mrpc":
        rows = rows[1:]
        return [row[3] for row in rows], [row[4] for row in rows], [row[0] for row in rows]
    return [row[3] for row in rows], [None for _ in rows], [row[1] for row in rows]


@pytest.mark.parametrize("name", ["mrpc", "cola"])
def test_a_mutated_tsv_file_is_read_as_the_simplest_code_reads_it_or_refused_with_its_line(name, tmp_path):
    path, rng, n_read = write_glue(tmp_path, name, n_train=6) / "train.tsv", random.Random(name), 0
    original = path.read_bytes()
    for _ in range(500):
        path.write_bytes(mutated(original, rng))
        try:
            examples = read_examples(TASKS[name], tmp_path, "train")
        except DataError as error:
            assert str(error).startswith(f"{path}:") and "\n" not in str(error)
            continue
        n_read += 1
        first, second, labels = simple_reading(path.read_bytes(), name)
        assert examples.first == first and (examples.second or [None] * len(first)) == second
        assert [str(label) for label in examples.labels] == labels
    assert 50 < n_read < 450
