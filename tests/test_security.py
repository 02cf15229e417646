"""Nothing that is loaded can run code."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import download_glue
import numpy as np
import pytest
import torch
from conftest import write_glue
from test_resume import LINEAR, command, stopped_run
from test_run_glue import ROOT, arguments, run_here

import run_glue
from bert_of_theseus import run_folder, training_state
from bert_of_theseus.classifier import UserError, load_model
from glue_processors import TASKS, cached_features, read_examples


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """What no test may make; each shows first that its bomb would."""
    path = tmp_path / "code was run"
    yield path
    assert not path.exists()


def fires(mark: Path, load) -> None:
    """The bomb works where it is loaded carelessly."""
    load()
    assert mark.is_dir()
    mark.rmdir()


def tensors_with(bomb: Bomb, folder: Path, legacy: bool) -> bytes:
    """A file of torch.save, of a model's weights and one thing more."""
    model, _, _ = load_model(str(folder), ("0", "1"), max_seq_length=32)
    file = io.BytesIO()
    torch.save(model.state_dict() | {"more": bomb}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_among_the_weights_is_refused(bert_folder, tmp_path, mark, legacy):
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    weights = folder / "pytorch_model.bin"
    weights.write_bytes(tensors_with(Bomb(mark), bert_folder, legacy))
    fires(mark, lambda: torch.load(weights, weights_only=False))
    with pytest.raises(UserError, match="no model could be loaded"):
        load_model(str(folder), ("0", "1"), max_seq_length=32)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_a_pickle_in_the_place_of_a_model_s_file_is_refused(bert_folder, tmp_path, mark, name):
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    fires(mark, lambda: pickle.loads((folder / name).read_bytes()))
    with pytest.raises(UserError):
        load_model(str(folder), ("0", "1"), max_seq_length=32)


def test_pickles_beside_a_model_are_not_looked_at(bert_folder, tmp_path, mark):
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        (folder / name).write_bytes(tensors_with(Bomb(mark), bert_folder, legacy=False))
    fires(mark, lambda: torch.load(folder / "optimizer.pt", weights_only=False))
    load_model(str(folder), ("0", "1"), max_seq_length=32)


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_a_model_s_own_code_is_not_run(bert_folder, tmp_path, mark, place):
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    module = folder / "own_code.py"
    module.write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Own: pass\n")
    fires(mark, lambda: exec(compile(module.read_text(), str(module), "exec"), {}))
    config = json.loads((folder / place).read_text())
    config["auto_map"] = {
        "AutoConfig": "own_code.Own",
        "AutoModelForSequenceClassification": "own_code.Own",
        "AutoTokenizer": ["own_code.Own", "own_code.Own"],
    }
    for kind in ({}, {"model_type": "own"} if place == "config.json" else {"tokenizer_class": "Own"}):
        (folder / place).write_text(json.dumps(config | kind))
        try:  # where transformers knows the model itself, it is loaded without that code
            load_model(str(folder), ("0", "1"), max_seq_length=32)
        except UserError:
            assert kind


def test_a_sharded_model_s_index_is_read_from_its_folder_alone(bert_folder, tmp_path, mark):
    folder = shutil.copytree(bert_folder, tmp_path / "inside" / "model")
    weights = tmp_path / "outside.safetensors"
    shutil.move(folder / "model.safetensors", weights)
    (tmp_path / "outside.bin").write_bytes(tensors_with(Bomb(mark), bert_folder, legacy=False))
    fires(mark, lambda: torch.load(tmp_path / "outside.bin", weights_only=False))
    for kind, index in (("bin", "pytorch_model.bin.index.json"), ("bin", "model.safetensors.index.json")):
        (folder / index).write_text(
            json.dumps({"metadata": {}, "weight_map": {"classifier.bias": f"../../outside.{kind}"}})
        )
        with pytest.raises(UserError):
            load_model(str(folder), ("0", "1"), max_seq_length=32)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_checkpoint_of_the_2020_release_is_converted_without_running_anything(bert_folder, tmp_path, mark, legacy):
    source = tmp_path / "old"
    source.mkdir()
    shutil.copy(bert_folder / "config.json", source)
    (source / "pytorch_model.bin").write_bytes(tensors_with(Bomb(mark), bert_folder, legacy))
    fires(mark, lambda: torch.load(source / "pytorch_model.bin", weights_only=False))
    script = [sys.executable, "scripts/convert_to_hf_ckpt.py", source, tmp_path / "new"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "nothing in it was run" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------ runs


def test_a_pickle_in_the_place_of_a_run_s_state_is_refused(bert_folder, tmp_path, mark, monkeypatch):
    data = write_glue(tmp_path / "MRPC", "mrpc")
    args = command(bert_folder, data, tmp_path / "o", *LINEAR.split())
    stopped_run(3, monkeypatch, *args)
    state = run_folder.newest_state(tmp_path / "o") / run_folder.STATE
    tensors, figures = training_state.read(state)
    for legacy in (False, True):
        torch.save({"tensors": tensors, "figures": figures, "more": Bomb(mark)}, state)
        fires(mark, lambda: torch.load(io.BytesIO(state.read_bytes()), weights_only=False))
        if legacy:
            state.write_bytes(pickle.dumps(Bomb(mark)))
        with pytest.raises(SystemExit, match="the run cannot go on from training_state"):
            run_here(*args, "--resume")


def test_a_pickle_in_the_features_cache_is_made_anew(bert_folder, tmp_path, mark, caplog):
    data = write_glue(tmp_path / "MRPC", "mrpc")
    examples = read_examples(TASKS["mrpc"], data, "dev")
    tokenizer = load_model(str(bert_folder), ("0", "1"), max_seq_length=32).tokenizer

    def features():
        return cached_features(TASKS["mrpc"], "dev", examples, tokenizer, 32, True, [data])

    expected = features()
    (cache,) = data.glob("cached_dev*")
    with np.load(cache) as arrays:
        content = dict(arrays)
    for name in content:
        bomb = np.empty(len(expected), dtype=object)
        bomb[0] = Bomb(mark)
        np.savez(cache, **(content | {name: bomb}))

        def load(name=name):
            with np.load(cache, allow_pickle=True) as arrays:
                return arrays[name]

        fires(mark, load)
        caplog.clear()
        assert np.array_equal(features().input_ids, expected.input_ids) and "is made anew" in caplog.text
    cache.write_bytes(pickle.dumps(Bomb(mark)))
    assert np.array_equal(features().input_ids, expected.input_ids)


def test_a_pickle_in_the_place_of_a_run_s_records_is_refused(bert_folder, tmp_path, mark):
    data, output = write_glue(tmp_path / "MRPC", "mrpc"), tmp_path / "o"
    output.mkdir()
    for name in (run_folder.STARTED, run_folder.FINISHED):
        (output / name).write_bytes(pickle.dumps(Bomb(mark)))
        with pytest.raises(SystemExit, match="damaged, or no record of a run"):
            run_here(*arguments("mrpc", bert_folder, data, output, "--do_train", "--resume"))
    for name in ("train.tsv", "dev.tsv"):
        (data / name).write_bytes(pickle.dumps(Bomb(mark)))
        fires(mark, lambda: pickle.loads((data / "train.tsv").read_bytes()))
        with pytest.raises(SystemExit, match=r"train\.tsv:1: "):
            run_here(*arguments("mrpc", bert_folder, data, tmp_path / "p", "--do_train"))


# ------------------------------------------------------------------------------------- names, archives


@pytest.mark.parametrize("name", ["$(mkdir MARK)", "`mkdir MARK`", "; mkdir MARK ;", "a && mkdir MARK", "|mkdir MARK"])
def test_names_are_not_run_by_the_shell_scripts(bert_folder, tmp_path, mark, name):
    name = name.replace("MARK", "marked")  # in the folder in which the scripts run
    subprocess.run(["bash", "-c", f"true {name}"], cwd=tmp_path)
    assert (tmp_path / "marked").is_dir()
    (tmp_path / "marked").rmdir()
    data, models = tmp_path / name / "data", tmp_path / name / "models"
    write_glue(data / "MRPC", "mrpc")
    shutil.copytree(bert_folder, models / "MRPC")
    settings = {"GLUE_DIR": str(data), "PREDECESSORS": str(models), "OUTPUT_DIR": str(tmp_path / name / "runs")}
    settings |= {"TASKS": "MRPC", "KS": "0.1", "PYTHON": sys.executable}
    sweep = [ROOT / "scripts" / "sweep.sh", "--list"]
    listed = subprocess.run(sweep, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True)
    assert listed.returncode == 0 and str(tmp_path) in listed.stdout
    dry = listed.stdout.replace(f"{sys.executable} ", "printf '%s\\n' ", 1)
    printed = subprocess.run(["bash", "-c", dry], cwd=tmp_path, capture_output=True, text=True).stdout
    assert str(data / "MRPC") in printed.splitlines()  # as one word
    for variable in ("TASKS", "KS", "SEEDS", "LEARNING_RATES", "REPLACING_RATES"):
        bad = os.environ | settings | {variable: name}
        subprocess.run(sweep, cwd=tmp_path, env=bad, capture_output=True)
    for flag in ("--task", "--model", "--output_dir"):
        quickstart = [ROOT / "scripts" / "quickstart.sh", "--task", "none", flag, name]
        subprocess.run(quickstart, cwd=tmp_path, env=os.environ | {"PYTHON": "false"}, capture_output=True)
    assert not (tmp_path / "marked").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "CoLA/../../evil", "C:\\evil", "CoLA\\..\\..\\evil"])
def test_members_of_an_archive_do_not_leave_their_folder(tmp_path, name):
    archive = tmp_path / "CoLA.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for file in ("CoLA/train.tsv", "CoLA/dev.tsv", "CoLA/test.tsv", name):
            members.writestr(file, "x")
    folder = tmp_path / "glue" / "CoLA"
    folder.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="leads outside the folder"):
        download_glue.unzip([archive], folder, ["train.tsv", "dev.tsv", "test.tsv"])
    assert set(tmp_path.rglob("*")) == before


def test_no_code_of_ours_trusts_what_it_loads():
    """A look at the sources: no pickle, no eval, no shell, no code from models."""
    sources = [*ROOT.glob("*.py"), *ROOT.glob("bert_of_theseus/*.py"), *ROOT.glob("scripts/*.py")]
    assert len(sources) > 15
    for path in sources:
        text = path.read_text()
        for word in ("import pickle", "pickle.load", "eval(", "exec(", "shell=True", "os.system", "yaml.load"):
            found = [line for line in text.splitlines() if word in line and f".{word}" not in line]
            assert not [line for line in found if f"_{word}" not in line and ".eval()" not in line], (path, word, found)
        assert "trust_remote_code=True" not in text and "allow_pickle=True" not in text
        assert text.count("torch.load(") == text.count("weights_only=True")
    assert run_glue.__file__
