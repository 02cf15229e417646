"""Nothing that is loaded runs code: each file here does when it is loaded carelessly, which is tried first."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import convert_to_hf_ckpt
import numpy as np
import predict_glue
import pytest
import torch
import transformers
from conftest import save_bert, write_glue
from safetensors.torch import load_file, save_file
from test_convert_to_hf_ckpt import RELEASE
from test_resume import stopped_run
from test_run_glue import arguments, read_results, run_here
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from bert_of_theseus import run_folder
from glue_processors import TASKS, read_examples

ROOT = Path(__file__).parents[1]


class MakesFolder:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Trap:
    """Where a trap tells that it was sprung, and files that are one."""

    def __init__(self, folder: Path):
        self.marker = folder / "sprung"

    def is_sprung(self) -> bool:
        return self.marker.exists()

    def springs(self, load, *args, **options) -> None:
        """Make sure that a careless call springs it, and set it again."""
        try:
            load(*args, **options)
        except Exception:  # once the code has run, what was loaded may well be nothing
            assert self.is_sprung()
        assert self.is_sprung()
        self.marker.rmdir() if self.marker.is_dir() else self.marker.unlink()

    def pickled(self, path: Path, how: str, weights: dict | None = None) -> None:
        """Write weights and code to `path` as torch does now ("zip") or did ("old"), or as pickle does ("bare")."""
        content = (weights or {}) | {"classifier.bias": MakesFolder(self.marker)}
        if how == "bare":
            path.write_bytes(pickle.dumps(content))
            self.springs(pickle.loads, path.read_bytes())
        else:
            torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
            self.springs(torch.load, io.BytesIO(path.read_bytes()), weights_only=False)


@pytest.fixture
def trap(tmp_path) -> Trap:
    return Trap(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data") / "MRPC", "mrpc", n_train=16, n_dev=8)


@pytest.fixture
def model(tmp_path) -> Path:
    return save_bert(tmp_path / "model", n_layer=2)


def refusal(capsys, call, *args) -> str:
    """The one line in which a call is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        call(*args)
    assert isinstance(end.value.code, str) and len(end.value.code.splitlines()) == 1
    assert not [line for line in capsys.readouterr().err.splitlines() if "Error" in line]
    return end.value.code


def train(model: Path, data: Path, output: Path, *more: object) -> None:
    run_here(*arguments("mrpc", model, data, output, "--do_train", "--do_eval", "--max_steps", 2, *more))


def predict(model: Path, data: Path, output: Path) -> None:
    shutil.copy(data / "dev.tsv", data / "test.tsv")
    flags = ["--model_name_or_path", model, "--task_name", "mrpc", "--data_dir", data, "--output_dir", output]
    predict_glue.main(predict_glue.parse_args([str(a) for a in [*flags, "--max_seq_length", 32]]))


# --------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_code_among_a_model_s_weights_is_not_run(name, how, trap, model, data, tmp_path, capsys):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    trap.pickled(model / name, how, weights)
    for call in (train, predict):
        assert f"{model}: no model could be loaded" in refusal(capsys, call, model, data, tmp_path / "output")
    assert not trap.is_sprung() and not (tmp_path / "output").exists()


@pytest.mark.parametrize("how", ["zip", "old"])
def test_code_in_a_part_of_a_model_s_weights_is_not_run(how, trap, model, data, tmp_path, capsys):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    trap.pickled(model / "pytorch_model-00001-of-00001.bin", how, weights)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model-00001-of-00001.bin")}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "no model could be loaded" in refusal(capsys, train, model, data, tmp_path / "output")
    assert not trap.is_sprung()


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("up", ["../", "../../", "{}/"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_index_does_not_lead_to_files_outside_of_the_model_s_folder(
    kind, up, sound, trap, model, data, tmp_path, capsys
):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    folder = Path(shutil.move(model, tmp_path / "deep" / "model")) if up == "../../" else model
    outside = tmp_path / f"weights.{kind}"
    if sound:
        save_file(weights, outside) if kind == "safetensors" else torch.save(weights, outside)
    else:
        trap.pickled(outside, "zip", weights)
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[kind]
    weight_map = dict.fromkeys(weights, up.format(tmp_path) + outside.name)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    reason = refusal(capsys, train, folder, data, tmp_path / "output")
    assert f"{name}.index.json names a file that is not in the folder" in reason
    assert not trap.is_sprung()


BESIDE = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.pkl"]


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
def test_pickles_beside_a_model_are_not_read(how, trap, model, data, tmp_path):
    for name in BESIDE:
        trap.pickled(model / name, how)
    train(model, data, tmp_path / "output", "--save_steps", 1, "--replacing_rate", 0.9, "--eval_all_checkpoints")
    for name in BESIDE:
        trap.pickled(tmp_path / "output" / name, how)
        trap.pickled(tmp_path / "output" / "checkpoint-1" / name, how)
    run_here(*arguments("mrpc", model, data, tmp_path / "output", "--do_eval", "--eval_all_checkpoints"))
    predict(tmp_path / "output", data, tmp_path / "predictions")
    assert (tmp_path / "predictions" / "MRPC.tsv").is_file() and not trap.is_sprung()


@pytest.mark.parametrize("name", ["key", "input_ids", "lengths", "token_type_ids", "labels"])
def test_code_in_a_cache_of_features_is_not_run_and_the_cache_made_anew(name, trap, model, data, tmp_path, caplog):
    folder = Path(shutil.copytree(data, tmp_path / "MRPC"))
    run_here(*arguments("mrpc", model, folder, tmp_path / "expected", "--do_eval"))
    (path,) = folder.glob("cached_dev_*.npz")
    with np.load(path) as arrays:
        sound = dict(arrays)
    np.savez(path, allow_pickle=True, **sound | {name: np.array([MakesFolder(trap.marker)], dtype=object)})
    trap.springs(lambda: np.load(path, allow_pickle=True)[name])
    run_here(*arguments("mrpc", model, folder, tmp_path / "output", "--do_eval"))
    assert not trap.is_sprung()
    assert read_results(tmp_path / "output") == read_results(tmp_path / "expected")
    assert f"{path} is damaged" in caplog.text
    with np.load(path) as arrays:
        assert all(np.array_equal(arrays[name], array) for name, array in sound.items())


def test_a_cache_of_features_that_is_a_pickle_is_not_read(trap, model, data, tmp_path):
    folder = Path(shutil.copytree(data, tmp_path / "MRPC"))
    run_here(*arguments("mrpc", model, folder, tmp_path / "expected", "--do_eval"))
    (path,) = folder.glob("cached_dev_*.npz")
    path.write_bytes(pickle.dumps({"key": MakesFolder(trap.marker)}))
    trap.springs(np.load, path, allow_pickle=True)
    run_here(*arguments("mrpc", model, folder, tmp_path / "output", "--do_eval"))
    assert not trap.is_sprung()
    assert read_results(tmp_path / "output") == read_results(tmp_path / "expected")


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
def test_code_in_the_state_of_an_unfinished_run_is_not_run(how, trap, model, data, tmp_path, monkeypatch, capsys):
    argv = arguments("mrpc", model, data, tmp_path / "run", "--do_train", "--max_steps", 4, "--replacing_rate", 0.9)
    stopped_run(2, monkeypatch, *argv)
    (state,) = tmp_path.glob(f"run/checkpoint-*/{run_folder.STATE}")
    trap.pickled(state, how)
    assert f"cannot go on from {run_folder.STATE} (damaged" in refusal(capsys, run_here, *argv, "--resume")
    assert not trap.is_sprung()


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
def test_code_in_a_checkpoint_of_2020_is_not_run(how, trap, tmp_path, capsys):
    release = Path(shutil.copytree(RELEASE, tmp_path / "release"))
    weights = torch.load(release / "pytorch_model.bin", weights_only=True)
    trap.pickled(release / "pytorch_model.bin", how, weights)
    args = convert_to_hf_ckpt.parse_args([str(release), str(tmp_path / "converted")])
    assert "nothing in it was run" in refusal(capsys, convert_to_hf_ckpt.main, args)
    assert not trap.is_sprung() and not (tmp_path / "converted").exists()


def test_pickles_beside_a_checkpoint_of_2020_are_not_read_or_copied(trap, tmp_path):
    release = Path(shutil.copytree(RELEASE, tmp_path / "release"))
    for name in BESIDE:
        trap.pickled(release / name, "old")
    convert_to_hf_ckpt.main(convert_to_hf_ckpt.parse_args([str(release), str(tmp_path / "converted")]))
    assert not trap.is_sprung()
    assert not {path.name for path in (tmp_path / "converted").iterdir()} & set(BESIDE)


TOKENIZER_FILES = "tokenizer.json vocab.txt tokenizer_config.json special_tokens_map.json added_tokens.json merges.txt "
TOKENIZER_FILES += "vocab.json tokenizer.model spiece.model sentencepiece.bpe.model chat_template.jinja"


@pytest.mark.parametrize("name", TOKENIZER_FILES.split())
def test_a_tokenizer_s_file_that_is_a_pickle_is_not_unpickled(name, trap, model, data, tmp_path, capsys):
    if name == "vocab.txt":
        (model / "tokenizer.json").unlink()
    trap.pickled(model / name, "bare")
    try:
        train(model, data, tmp_path / "output")  # where it is none of the files that a BERT's tokenizer has
    except SystemExit as end:
        assert "no tokenizer could be loaded" in end.code and len(end.code.splitlines()) == 1
    assert not trap.is_sprung()


# --------------------------------------------------------------------------------------- a folder's own code

EVIL = """
from pathlib import Path
Path({marker!r}).touch()
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


def hide_code(folder: Path, trap: Trap, model_type: str) -> None:
    """Have config and tokenizer name classes of a module in the folder."""
    (folder / "evil.py").write_text(EVIL.format(marker=str(trap.marker), model_type=model_type))
    classes = {"AutoConfig": "evil.EvilConfig"}
    classes |= dict.fromkeys(("AutoModel", "AutoModelForSequenceClassification"), "evil.EvilModel")
    edit(folder / "config.json", auto_map=classes, model_type=model_type, architectures=["EvilModel"])
    tokenizers = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    edit(folder / "tokenizer_config.json", auto_map=tokenizers, tokenizer_class="EvilTokenizer")


@pytest.mark.parametrize("model_type", ["bert", "evil"])
def test_a_model_folder_s_own_code_is_not_run(model_type, trap, model, data, modules, tmp_path):
    hide_code(model, trap, model_type)
    trap.springs(AutoConfig.from_pretrained, model, trust_remote_code=True)
    try:
        train(model, data, tmp_path / "output", "--replacing_rate", 0.9)
    except SystemExit as end:
        assert len(end.code.splitlines()) == 1
        assert ("could be loaded" in end.code and model_type == "evil") or "tokenizer" in end.code
    else:
        assert model_type == "bert"
        assert not [path for path in (tmp_path / "output").rglob("*.json") if "vil" in path.read_text()]
    assert not trap.is_sprung()


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoTokenizer])
def test_a_tokenizer_s_or_a_model_s_own_code_is_not_run_where_the_rest_is_sound(
    auto, trap, model, data, modules, tmp_path, capsys
):
    sound = save_bert(tmp_path / "sound", n_layer=2)
    hide_code(model, trap, "bert")
    if auto is AutoTokenizer:
        shutil.copy(sound / "config.json", model)
    else:
        shutil.copy(sound / "tokenizer_config.json", model)
    trap.springs(auto.from_pretrained, model, trust_remote_code=True)
    try:
        train(model, data, tmp_path / "output", "--replacing_rate", 0.9, "--do_lower_case")
    except SystemExit as end:
        assert len(end.code.splitlines()) == 1 and "no tokenizer could be loaded" in end.code
        assert auto is AutoTokenizer
    else:
        assert not [path for path in (tmp_path / "output").rglob("*.json") if "vil" in path.read_text()]
    assert not trap.is_sprung()


# ------------------------------------------------------------------------------------------------ names

NAME = "a'b'\"c\" $(touch marker) `touch marker` ${IFS};touch marker&touch marker|touch marker\n*?[a]<x>\\ -x"

# An interpreter that notes its arguments and does what the scripts wait for.
FAKE_PYTHON = f"""#!{sys.executable} -IS
import json, os, sys
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
if "--output_dir" in sys.argv:
    folder = sys.argv[sys.argv.index("--output_dir") + 1]
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/run.json", "w") as file:
        json.dump(dict(main_metric="acc", last=dict(main=0.75)), file)
elif sys.argv[1] == "-":
    print("0.01")
"""


def make_executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def notes(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def bash(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name not in ("GLUE_DIR", "CUDA_VISIBLE_DEVICES")}
    words = ["bash", *map(str, command)]
    return subprocess.run(words, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=60)


def markers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name == "marker"]


def test_the_name_that_is_tried_runs_commands_where_it_is_not_quoted(tmp_path):
    bash("-c", f"echo {NAME}", cwd=tmp_path)
    assert markers(tmp_path)


@pytest.mark.parametrize("listed", [False, True])
def test_the_sweep_takes_names_as_they_are(listed, tmp_path):
    odd = tmp_path / NAME
    (odd / "data" / "MRPC").mkdir(parents=True)
    (odd / "models" / "MRPC").mkdir(parents=True)
    (odd / "models" / "MRPC" / "config.json").write_text("{}")
    folders = {"GLUE_DIR": str(odd / "data"), "PREDECESSORS": str(odd / "models"), "OUTPUT_DIR": str(odd / "runs")}
    python = make_executable(tmp_path / f"bin {NAME}" / "python", FAKE_PYTHON)
    settings = folders | {"TASKS": "MRPC", "KS": "0.1", "PYTHON": str(python), "NOTES": str(tmp_path / "notes")}
    script = ROOT / "scripts" / "sweep.sh"
    more = ["--config_name", NAME]
    done = bash(script, *(["--list"] if listed else []), "--", *more, cwd=tmp_path, **settings, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    if listed:
        (command,) = done.stdout.splitlines()
        assert bash("-c", command, cwd=tmp_path, **settings).returncode == 0
    run = notes(tmp_path / "notes")[0]
    assert run[run.index("--model_name_or_path") + 1] == str(odd / "models" / "MRPC")
    assert run[run.index("--data_dir") + 1] == str(odd / "data" / "MRPC")
    assert run[run.index("--output_dir") + 1].startswith(str(odd / "runs" / "MRPC"))
    assert run[-2:] == more
    assert not markers(tmp_path)


@pytest.mark.parametrize("variable", ["TASKS", "LEARNING_RATES", "REPLACING_RATES", "KS", "STEPS", "SEEDS"])
def test_the_sweep_refuses_what_is_no_number_or_task(variable, tmp_path):
    write_glue(tmp_path / "data" / "MRPC", "mrpc")
    (tmp_path / "models" / "MRPC").mkdir(parents=True)
    (tmp_path / "models" / "MRPC" / "config.json").write_text("{}")
    settings = {"GLUE_DIR": "data", "PREDECESSORS": "models", "OUTPUT_DIR": "runs", "TASKS": "MRPC", "KS": "0.1"}
    python = make_executable(tmp_path / "bin" / "python", FAKE_PYTHON)
    settings |= {"PYTHON": str(python), "NOTES": str(tmp_path / "notes")}
    code = ["$(touch${IFS}marker)", "`touch${IFS}marker`", "a[$(touch${IFS}marker)]", "1;touch marker", "../x", "*"]
    for value in code:
        done = bash(ROOT / "scripts" / "sweep.sh", cwd=tmp_path, **settings | {variable: value})
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, value
    assert not markers(tmp_path) and not (tmp_path / "notes").exists()


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_quickstart_takes_names_as_they_are(is_folder, tmp_path):
    root = tmp_path / NAME / "project"
    (root / "scripts").mkdir(parents=True)
    for name in ("quickstart.sh", "environment.sh"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    make_executable(root / ".venv" / "bin" / "python", FAKE_PYTHON)
    make_executable(root / ".venv" / "bin" / "pip", "#!/bin/sh\n")
    write_glue(tmp_path / "data" / "MRPC", "mrpc")
    glue = Path(shutil.move(tmp_path / "data", tmp_path / f"data {NAME}"))
    model = tmp_path / f"model {NAME}" if is_folder else f"someone/{NAME}"
    if is_folder:
        model.mkdir()
    output = tmp_path / f"output {NAME}"
    settings = {"GLUE_DIR": str(glue), "NOTES": str(tmp_path / "notes")}
    done = bash(root / "scripts" / "quickstart.sh", "--model", model, "--output_dir", output, cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    first, *_ = (run for run in notes(tmp_path / "notes") if run[0] == "run_glue.py")
    assert first[first.index("--model_name_or_path") + 1] == str(model)
    assert first[first.index("--data_dir") + 1] == str(glue / "MRPC")
    assert first[first.index("--output_dir") + 1].startswith(str(output))
    assert not markers(tmp_path)


def test_a_folder_of_an_odd_name_is_trained_evaluated_and_predicted_with(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / NAME.replace("\n", " ")
    model = save_bert(odd / "model", n_layer=2)
    train(model, data, odd / "run", "--replacing_rate", 0.9, "--save_steps", 1)
    predict(odd / "run", data, odd / "predictions")
    assert len(read_examples(TASKS["mrpc"], data, "test").first) == 8
    assert not markers(tmp_path)


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
