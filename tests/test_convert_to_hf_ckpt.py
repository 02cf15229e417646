"""Checkpoints of the 2020 release become ordinary models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import convert_to_hf_ckpt
import numpy as np
import pytest
import torch
from conftest import save_bert, write_glue
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

ROOT = Path(__file__).parents[1]
RELEASE = Path(__file__).parent / "data" / "release_checkpoint"


def run_as_command(script: str, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def convert(source: Path, target: Path) -> None:
    convert_to_hf_ckpt.main(convert_to_hf_ckpt.parse_args([str(source), str(target)]))


@pytest.fixture
def release(tmp_path) -> Path:
    """A copy of the release's checkpoint, for damage."""
    return Path(shutil.copytree(RELEASE, tmp_path / "release"))


def edit_config(folder: Path, **options) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | options))


def test_the_converted_model_has_the_release_s_logits(tmp_path):
    run = run_as_command("scripts/convert_to_hf_ckpt.py", RELEASE, tmp_path / "converted")
    assert run.returncode == 0, run.stderr
    weights = torch.load(RELEASE / "pytorch_model.bin", weights_only=True)
    n_parameters = sum(w.numel() for name, w in weights.items() if ".encoder.layer." not in name)
    assert (
        run.stdout == f"{tmp_path}/converted: BertForSequenceClassification of 2 layers, {n_parameters:,} parameters\n"
    )
    assert "holds no vocab.txt" in run.stderr and len(run.stderr.splitlines()) == 1
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert not any(report.values())
    assert (type(model), model.config.num_hidden_layers) == (BertForSequenceClassification, 2)
    assert model.config.label2id == {"0": 0, "1": 1}  # of MRPC, which the old config names
    expected = np.load(RELEASE / "expected.npz")
    with torch.no_grad():
        logits = model(torch.tensor(expected["input_ids"]), torch.tensor(expected["attention_mask"])).logits
    assert np.abs(logits.numpy() - expected["logits"]).max() < 1e-5


def as_release(folder: Path, n_successor: int = 2) -> Path:
    """A model folder written as the release would have, its last layers doubling as the successor's."""
    model = BertForSequenceClassification.from_pretrained(folder)
    weights, n_layer = model.state_dict(), model.config.num_hidden_layers
    for i in range(n_successor):
        old = f".layer.{n_layer - n_successor + i}."
        weights |= {name.replace(old, f".scc_layer.{i}."): w for name, w in model.state_dict().items() if old in name}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_tokenizer_files_come_along_and_run_glue_takes_the_result(tmp_path):
    folder = as_release(save_bert(tmp_path / "release"))
    (folder / "tokenizer.json").unlink()  # there was none in 2020
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "max_len": 512}')
    edit_config(folder, finetuning_task="mrpc")
    convert(folder, tmp_path / "converted")
    assert AutoTokenizer.from_pretrained(tmp_path / "converted").tokenize("Good cats") == ["Good", "cat", "##s"]
    data = write_glue(tmp_path / "MRPC", "mrpc")
    flags = ["--model_name_or_path", tmp_path / "converted", "--task_name", "mrpc", "--data_dir", data]
    run = run_as_command("run_glue.py", *flags, "--output_dir", tmp_path / "out", "--do_eval", "--max_seq_length", 32)
    assert run.returncode == 0, run.stderr
    assert set(json.loads(run.stdout)) == {"eval_acc", "eval_f1", "eval_acc_and_f1"}


def test_a_task_of_three_labels_under_a_config_that_names_two(tmp_path):
    folder = as_release(save_bert(tmp_path / "release", num_labels=3))
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_labels": 3, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (folder / "config.json").write_text(json.dumps(config | {"finetuning_task": "mnli"}))
    convert(folder, tmp_path / "converted")
    labels = AutoModelForSequenceClassification.from_pretrained(tmp_path / "converted").config.id2label
    assert labels == {0: "contradiction", 1: "entailment", 2: "neutral"}


def test_a_checkpoint_without_a_head_becomes_an_encoder(release, tmp_path):
    weights = torch.load(release / "pytorch_model.bin", weights_only=True)
    weights = {name.removeprefix("bert."): w for name, w in weights.items() if name.startswith("bert.")}
    weights["embeddings.position_ids"] = torch.arange(32)[None]
    torch.save(weights, release / "pytorch_model.bin")
    convert(release, tmp_path / "converted")
    assert AutoModel.from_pretrained(tmp_path / "converted").config.num_hidden_layers == 2


class RunsCode:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hide_code(folder: Path) -> None:
    torch.save({"classifier.bias": RunsCode(folder / "it_ran")}, folder / "pytorch_model.bin")


def drop_layer(folder: Path) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({n: w for n, w in weights.items() if "scc_layer.0" not in n}, folder / "pytorch_model.bin")


def make_ordinary(folder: Path) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({n: w for n, w in weights.items() if "scc_layer" not in n}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (hide_code, "pytorch_model.bin is damaged or holds more than tensors; nothing in it was run"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80\x02junk"), "damaged or holds more than tensors"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "damaged or holds more than tensors"),
        (lambda f: torch.save({"args": 3}, f / "pytorch_model.bin"), "does not hold a model's weights"),
        (lambda f: torch.save([torch.ones(2)], f / "pytorch_model.bin"), "does not hold a model's weights"),
        (make_ordinary, "no scc_layer in its weights; load it as it is"),
        (drop_layer, "its weights are not those of a BertForSequenceClassification"),
        (lambda f: (f / "pytorch_model.bin").unlink(), "it holds no pytorch_model.bin"),
        (lambda f: (f / "config.json").unlink(), "it holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "no config of a BERT could be read"),
        (lambda f: edit_config(f, hidden_size=48), "its weights are not those of a BertForSequenceClassification"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused_in_one_line(capsys, release, tmp_path, damage, reason):
    damage(release)
    with pytest.raises(SystemExit) as exit_:
        convert(release, tmp_path / "converted")
    captured = capsys.readouterr()
    said = captured.err + (exit_.value.code if isinstance(exit_.value.code, str) else "")
    assert reason in said and len(said.strip().splitlines()) == 1
    assert exit_.value.code != 0
    assert not (release / "it_ran").exists()
    assert not (tmp_path / "converted").exists()


def test_a_target_in_use_is_refused(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        convert(RELEASE, tmp_path)
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_error_of_the_command_line_is_one_line_and_a_status():
    run = run_as_command("scripts/convert_to_hf_ckpt.py", "/nowhere", "x")
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1
