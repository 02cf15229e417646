"""Checkpoints of the 2020 release become ordinary models."""

import argparse
import json
import shutil
from pathlib import Path

import convert_to_hf_ckpt
import numpy as np
import pytest
import torch
from conftest import save_bert
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification

from bert_of_theseus.classifier import load_classifier

RELEASE = Path(__file__).parent / "data" / "release_checkpoint"


def convert(source: Path, target: Path) -> None:
    convert_to_hf_ckpt.main(convert_to_hf_ckpt.parse_args([str(source), str(target)]))


@pytest.fixture
def release(tmp_path) -> Path:
    """A copy of the release's checkpoint."""
    return Path(shutil.copytree(RELEASE, tmp_path / "release"))


def edit_config(folder: Path, **options) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | options))


def edit_weights(folder: Path, change) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(change(weights), folder / "pytorch_model.bin")


def test_the_converted_model_has_the_release_s_logits(capsys, tmp_path):
    convert(RELEASE, tmp_path / "converted")
    assert capsys.readouterr().out == f"{tmp_path}/converted: BertForSequenceClassification of 2 layers\n"
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert not any(report.values())
    assert (type(model), model.config.num_hidden_layers) == (BertForSequenceClassification, 2)
    assert model.config.label2id == {"0": 0, "1": 1}  # of MRPC, which the old config names
    expected = np.load(RELEASE / "expected.npz")
    with torch.no_grad():
        logits = model(torch.tensor(expected["input_ids"]), torch.tensor(expected["attention_mask"])).logits
    assert np.abs(logits.numpy() - expected["logits"]).max() < 1e-5


def test_options_that_transformers_no_longer_has_are_dropped(tmp_path):
    convert(RELEASE, tmp_path / "converted")
    converted = json.loads((tmp_path / "converted" / "config.json").read_text())
    old = json.loads((RELEASE / "config.json").read_text())
    gone = {"output_past", "vocab_size_or_config_json_file", "eos_token_ids"}
    assert gone <= set(old) and not gone & set(converted)
    assert all(converted[name] == old[name] for name in ("hidden_size", "vocab_size", "layer_norm_eps"))


def test_a_head_of_three_labels_gets_their_names_though_the_old_config_names_two(release, tmp_path):
    head = {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.arange(3.0)}
    edit_weights(release, lambda weights: weights | head)
    edit_config(release, num_labels=3, finetuning_task="mnli")
    convert(release, tmp_path / "converted")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "converted")
    assert model.config.id2label == {0: "contradiction", 1: "entailment", 2: "neutral"}
    assert model.classifier.bias.tolist() == [0, 1, 2]


def test_a_checkpoint_without_a_tokenizer_is_converted_with_a_warning(release, tmp_path, caplog):
    for path in release.glob("*vocab*"):
        path.unlink()
    convert_to_hf_ckpt.convert(release, tmp_path / "new")
    assert "holds no tokenizer: copy vocab.txt" in caplog.text


def test_the_tokenizer_comes_along_so_that_run_glue_can_load_the_model(release, tmp_path):
    bert = save_bert(tmp_path / "bert")
    shutil.copy(bert / "vocab.txt", release)
    (release / "tokenizer_config.json").write_text('{"do_lower_case": false, "max_len": 512}')
    convert(release, tmp_path / "converted")
    classifier = load_classifier(str(tmp_path / "converted"), ("0", "1"), max_seq_length=32)
    assert classifier.tokenizer.tokenize("Good cats") == ["Good", "cat", "##s"]
    assert classifier.model.config.num_hidden_layers == 2


def test_a_checkpoint_without_a_head_becomes_an_encoder(release, tmp_path):
    def without_head(weights: dict) -> dict:
        weights = {name.removeprefix("bert."): w for name, w in weights.items() if name.startswith("bert.")}
        return weights | {"embeddings.position_ids": torch.arange(32)[None]}

    edit_weights(release, without_head)
    convert(release, tmp_path / "converted")
    model, report = AutoModel.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert model.config.num_hidden_layers == 2 and not any(report.values())


def hide_object(folder: Path) -> None:
    """Put an object among the weights, whose class a careless loader would call."""
    edit_weights(folder, lambda weights: weights | {"arguments": argparse.Namespace(seed=42)})


def cut_short(folder: Path) -> None:
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])


def drop(part: str):
    return lambda folder: edit_weights(folder, lambda w: {name: w[name] for name in w if part not in name})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (hide_object, "pytorch_model.bin is damaged or holds more than tensors; nothing in it was run"),
        (cut_short, "pytorch_model.bin is damaged"),
        (lambda f: (f / "pytorch_model.bin").write_text("version https://git-lfs.github.com"), "is damaged"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "is damaged"),
        (drop("scc_layer"), "no scc_layer in its weights; load it as it is"),
        (drop("scc_layer.0"), "its weights are not those that its config.json calls for"),
        (lambda f: edit_config(f, hidden_size=48), "its weights are not those that its config.json calls for"),
        (lambda f: (f / "pytorch_model.bin").unlink(), "it holds no pytorch_model.bin"),
        (lambda f: (f / "config.json").unlink(), "it holds no config.json"),
        (lambda f: (f / "config.json").write_text('{"hidden_size": '), "config.json is no JSON"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused_in_one_line_and_nothing_is_written(release, tmp_path, damage, reason):
    damage(release)
    with pytest.raises(SystemExit) as exit_:
        convert(release, tmp_path / "converted")
    assert reason in exit_.value.code and "\n" not in exit_.value.code
    assert not (tmp_path / "converted").exists()


def test_a_folder_that_is_not_empty_is_not_written_to(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is there already"):
        convert(RELEASE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
