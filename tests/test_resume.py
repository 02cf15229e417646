"""Runs that are stopped or killed, and resumed."""

import json
import math
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import save_bert, write_glue
from safetensors.torch import load_file, save_file
from test_run_glue import arguments, contents, read_results, run_here, scalars
from transformers import AutoModelForSequenceClassification

import run_glue
from bert_of_theseus import TheseusLayers
from bert_of_theseus.classifier import Classifier
from bert_of_theseus.run.folder import STATE, UNFINISHED, checkpoint_folders, newest_state, step_of
from bert_of_theseus.run.lock import LOCK
from bert_of_theseus.run.run import Run

ROOT = Path(__file__).parents[1]
LINEAR = "--replacing_rate 0.3 --scheduler_type linear --scheduler_linear_k 0.05"
CONSTANT = "--replacing_rate 0.2 --steps_for_replacing 9"
WHOLE = f"{CONSTANT} --finetune_whole_successor"
SCHEDULES = {"linear": LINEAR, "constant": CONSTANT, "whole": WHOLE, "fine-tuning": ""}
STEPS = "--do_train --do_eval --evaluate_during_training --max_steps 14 --logging_steps 4 --save_steps 5 "
STEPS += "--weight_decay 0.01 --warmup_steps 2 --gradient_accumulation_steps 2"


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data") / "MRPC", "mrpc")


def command(model: Path, data: Path, output: Path, *flags: object) -> list[str]:
    return arguments("mrpc", model, data, output, *STEPS.split(), *flags)


def resumed_after(folder: Path) -> list[int]:
    return [part["after_step"] for part in json.loads((folder / "run.json").read_text())["resumed"]]


def without_times(record: dict) -> dict:
    """The part of a run.json that does not depend on when, where and how often the run was resumed."""
    record = {k: v for k, v in record.items() if k not in {"start", "end", "command", "training_seconds", "files"}}
    record["arguments"] = {
        k: v for k, v in record["arguments"].items() if k not in {"output_dir", "data_dir", "resume"}
    }
    record["resumed"] = None
    for name in ("last", "best", "predecessor"):
        record[name] = {k: v for k, v in record.get(name, {}).items() if k != "seconds"}
    return record


def assert_same_run(folder: Path, expected: Path) -> None:
    """The same bytes wherever times and names do not come in, the same numbers where they do, and nothing more."""

    def files(of: Path) -> list[str]:
        return sorted(str(p.relative_to(of)) for p in of.rglob("*") if p.is_file() and p.parent.name != "runs")

    assert files(folder) == files(expected)
    for name in files(expected):
        if name == "run.json":
            ours, theirs = (without_times(json.loads((f / name).read_text())) for f in (folder, expected))
            assert ours == theirs
        elif not name.endswith("README.md"):
            assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert scalars(folder) == scalars(expected)


def stop_after(step: int, monkeypatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of a step."""
    true_step, steps = run_glue.train_step, iter(range(1, 10**6))

    def with_signal(*args):
        loss = true_step(*args)
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return loss

    monkeypatch.setattr(run_glue, "train_step", with_signal)


def stopped_run(step: int, monkeypatch, *args: object, number: int = signal.SIGTERM) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        stop_after(step, patch, number)
        run_here(*args)
    assert end.value.code == 128 + number


def run_stopped_at(checkpoint: str, monkeypatch, *args: object) -> None:
    """A run that gets a signal while a checkpoint is loaded to be evaluated."""
    true_load = run_glue.load_classifier

    def load_and_stop(source, *more, **options):
        if str(source).endswith(checkpoint):
            os.kill(os.getpid(), signal.SIGTERM)
        return true_load(source, *more, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(run_glue, "load_classifier", load_and_stop)
        run_here(*args)
    assert end.value.code == 128 + signal.SIGTERM


@pytest.fixture(scope="module", params=SCHEDULES)
def uninterrupted(request, bert_folder, mrpc, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run with each schedule, and its flags."""
    output = tmp_path_factory.mktemp("run") / request.param
    flags = SCHEDULES[request.param].split()
    run_here(*command(bert_folder, mrpc, output, *flags))
    return output, flags


only_linear = pytest.mark.parametrize("uninterrupted", ["linear"], indirect=True)


# ------------------------------------------------------------------------------------------- going on


# The run "whole" changes what is trained after step 9.
STOPS = [("linear", step) for step in (1, 4, 5, 7, 13, 14)] + [("whole", step) for step in (1, 9, 10, 14)]


@pytest.mark.parametrize(
    ("uninterrupted", "step"), [*STOPS, ("constant", 7), ("fine-tuning", 7)], indirect=["uninterrupted"]
)
def test_a_run_that_was_stopped_is_resumed_as_if_nothing_had_happened(
    bert_folder, mrpc, uninterrupted, tmp_path, monkeypatch, step
):
    expected, flags = uninterrupted
    args = command(bert_folder, mrpc, tmp_path / "o", *flags)
    stopped_run(step, monkeypatch, *args)
    torch.rand(7)  # a process of its own would not have this one's random state either
    run_here(*args, "--resume")
    assert_same_run(tmp_path / "o", expected)
    assert resumed_after(tmp_path / "o") == [step]


def test_a_run_can_be_stopped_many_times_and_completes_an_evaluation_first(
    bert_folder, mrpc, uninterrupted, tmp_path, monkeypatch
):
    expected, flags = uninterrupted
    args = command(bert_folder, mrpc, tmp_path / "o", *flags, "--resume")
    for step in (3, 2):
        stopped_run(step, monkeypatch, *args)
    true_predict = Classifier.predict

    def interrupted(classifier, *arguments):
        if not flags or any(isinstance(module, TheseusLayers) for module in classifier.model.modules()):
            os.kill(os.getpid(), signal.SIGTERM)  # not in the predecessor's pass
        return true_predict(classifier, *arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Classifier, "predict", interrupted)
        run_here(*args)  # from step 5 to the evaluation after step 8
    assert (tmp_path / "o" / "checkpoint-8-stopped").is_dir()
    run_here(*args)
    assert_same_run(tmp_path / "o", expected)
    assert resumed_after(tmp_path / "o") == [3, 5, 8]


@only_linear
def test_a_stop_between_the_evaluations_of_checkpoints_is_heard(
    bert_folder, mrpc, uninterrupted, tmp_path, monkeypatch
):
    expected, flags = uninterrupted
    args = command(bert_folder, mrpc, tmp_path / "o", *flags, "--resume", "--eval_all_checkpoints")
    run_stopped_at("checkpoint-5", monkeypatch, *args)
    assert not (tmp_path / "o" / "run.json").exists()
    run_here(*args)
    assert (tmp_path / "o/log.jsonl").read_bytes() == (expected / "log.jsonl").read_bytes()
    assert {"acc_5", "acc_10"} <= read_results(tmp_path / "o").keys()


def test_a_run_that_is_evaluated_once_logs_that_once_though_it_is_stopped_after_it(
    bert_folder, mrpc, tmp_path, monkeypatch
):
    steps = "--do_train --do_eval --eval_all_checkpoints --max_steps 2 --save_steps 1 --resume".split()
    args = arguments("mrpc", bert_folder, mrpc, tmp_path / "o", *steps, *LINEAR.split())
    run_stopped_at("checkpoint-1", monkeypatch, *args)
    run_here(*args)
    lines = [json.loads(line) for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_acc" in line] == [2]


@only_linear
def test_a_card_tells_the_score_of_its_own_step(uninterrupted):
    output, _ = uninterrupted  # evaluated every 4 steps, saved every 5
    assert "not evaluated at this step" in (output / "checkpoint-5" / "README.md").read_text()
    assert "not evaluated at this step" not in (output / "checkpoint-best" / "README.md").read_text()


@only_linear
def test_without_a_state_a_run_is_resumed_from_the_beginning(bert_folder, mrpc, uninterrupted, tmp_path, monkeypatch):
    expected, flags = uninterrupted
    args = command(bert_folder, mrpc, tmp_path / "o", *flags, "--resume")
    stopped_run(7, monkeypatch, *args)  # begun with --resume in a folder that is not there
    for state in (tmp_path / "o").glob(f"*/{STATE}"):
        state.unlink()
    (tmp_path / "o" / "cached_mine.npz").write_text("stays")
    run_here(*args)
    (tmp_path / "o" / "cached_mine.npz").unlink()
    assert_same_run(tmp_path / "o", expected)


@only_linear
def test_a_finished_run_that_is_resumed_says_so_and_evaluates(bert_folder, mrpc, uninterrupted, capsys, caplog):
    output, flags = uninterrupted
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    caplog.set_level("INFO")
    run_here(*command(bert_folder, mrpc, output, *flags, "--resume"))
    assert f"The run in {output} is finished" in caplog.text
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == pytest.approx({f"eval_{k}": v for k, v in read_results(output).items()})
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@only_linear
def test_a_finished_run_of_other_settings_is_refused(bert_folder, mrpc, uninterrupted):
    output, flags = uninterrupted
    with pytest.raises(SystemExit, match="--max_steps was 14, is 15"):
        run_here(*command(bert_folder, mrpc, output, *flags, "--resume", "--max_steps", 15))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [[], ["--fp16"], ["--bf16"]], ids=["float32", "fp16", "bf16"])
def test_on_a_gpu_a_deterministic_run_is_resumed_to_the_same_weights(
    bert_folder, mrpc, tmp_path, monkeypatch, precision
):
    flags = [*LINEAR.split(), "--deterministic", *precision]
    outputs = {name: tmp_path / name for name in ("whole", "again", "stopped")}
    args = {n: [a for a in command(bert_folder, mrpc, o, *flags) if a != "--no_cuda"] for n, o in outputs.items()}
    try:
        run_here(*args["whole"])
        run_here(*args["again"])
        stopped_run(7, monkeypatch, *args["stopped"])
        run_here(*args["stopped"], "--resume")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_run(outputs["again"], outputs["whole"])
    assert_same_run(outputs["stopped"], outputs["whole"])


# ------------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def stopped(bert_folder, mrpc, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run that was stopped after step 7: its folder and its command."""
    output = tmp_path_factory.mktemp("stopped") / "o"
    args = command(bert_folder, mrpc, output, *LINEAR.split())
    with pytest.MonkeyPatch.context() as patch:
        stopped_run(7, patch, *args)
    return output, args


def refused(output: Path, args: list) -> str:
    """The one line by which a run is refused that writes nothing."""
    before = contents(output)
    with pytest.raises(SystemExit) as end:
        run_here(*args)
    assert contents(output) == before
    message = str(end.value.code)
    assert message.startswith("run_glue.py: error: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--learning_rate 2e-3", ["--learning_rate was 0.001, is 0.002"]),
        ("--seed 1 --scheduler_linear_k 0.06", ["--seed was 42, is 1", "--scheduler_linear_k was 0.05, is 0.06"]),
        ("--per_gpu_train_batch_size 4", ["--per_gpu_train_batch_size was 8, is 4"]),
        ("--max_seq_length 31", ["--max_seq_length was 32, is 31"]),
        ("--num_train_epochs 3 --max_steps 0", ["--num_train_epochs was 20.0, is 3.0", "--max_steps was 14, is 0"]),
        ("--scc_n_layer 1", ["--scc_n_layer was None, is 1"]),
    ],
)
def test_a_run_of_other_hyper_parameters_is_not_resumed(stopped, flags, names):
    output, args = stopped
    message = refused(output, [*args, *flags.split(), "--resume"])
    assert f"not the run that {output} holds" in message and all(name in message for name in names)


def test_a_run_of_several_processes_is_not_resumed_by_one(stopped, tmp_path):
    output, args = stopped
    shutil.copytree(output, tmp_path / "o")
    path = tmp_path / "o" / UNFINISHED
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processes": 2}))
    message = refused(tmp_path / "o", [*args, "--resume", "--output_dir", tmp_path / "o"])
    assert "the number of processes was 2, is 1" in message


def test_what_changes_nothing_in_the_training_may_differ(stopped, tmp_path):
    output, args = stopped
    shutil.copytree(output, tmp_path / "o")
    more = f"--resume --output_dir {tmp_path / 'o'} --logging_steps 1 --per_gpu_eval_batch_size 3 --save_total_limit 1"
    run_here(*args, *more.split())
    assert [path.name for path in checkpoint_folders(tmp_path / "o")] == ["checkpoint-10"]


def test_a_run_that_is_evaluated_only_when_it_is_resumed_has_the_dev_set_in_its_record(
    bert_folder, mrpc, tmp_path, monkeypatch
):
    args = arguments("mrpc", bert_folder, mrpc, tmp_path / "o", "--do_train", "--max_steps", 4, *LINEAR.split())
    stopped_run(2, monkeypatch, *args)
    run_here(*args, "--do_eval", "--resume")
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    assert record["arguments"]["do_eval"] and set(record["data"]) == {"train.tsv", "dev.tsv"} and record["last"]


def test_a_run_on_other_data_or_from_another_model_is_not_resumed(stopped, bert_folder, mrpc, tmp_path):
    output, args = stopped
    data = shutil.copytree(mrpc, tmp_path / "MRPC")
    with open(data / "dev.tsv", "a") as file:
        file.write("1\t1\t2\ta film\tthe film\n")
    assert "dev.tsv has changed" in refused(output, [*args, "--resume", "--data_dir", data])
    model = shutil.copytree(bert_folder, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"][0] += 1e-6
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    message = refused(output, [*args, "--resume", "--model_name_or_path", model])
    assert "the model to start from has changed" in message
    config = json.loads((bert_folder / "config.json").read_text()) | {"hidden_dropout_prob": 0.2}
    shutil.copy(bert_folder / "model.safetensors", model)
    (model / "config.json").write_text(json.dumps(config))
    message = refused(output, [*args, "--resume", "--model_name_or_path", model])
    assert "the model to start from has changed" in message


def test_the_same_data_and_model_in_other_places_are_the_same(stopped, bert_folder, mrpc, tmp_path):
    output, args = stopped
    shutil.copytree(output, tmp_path / "o")
    data, model = shutil.copytree(mrpc, tmp_path / "MRPC"), shutil.copytree(bert_folder, tmp_path / "model")
    places = ["--output_dir", tmp_path / "o", "--data_dir", data, "--model_name_or_path", model]
    run_here(*args, "--resume", *places)
    assert (tmp_path / "o" / "run.json").is_file()


def test_there_must_be_a_run_to_resume(bert_folder, mrpc, tmp_path):
    output = tmp_path / "o"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    args = command(bert_folder, mrpc, output, "--resume")
    assert "is not empty, and holds no run to resume" in refused(output, args)
    (output / "run.json").write_text("{}")
    assert "run.json is not the record of a run of run_glue.py; remove it" in refused(output, args)
    (output / "run.json").unlink()
    run_here(*args, "--overwrite_output_dir", "--max_steps", 1)
    assert (output / "notes.txt").read_text() == "mine" and (output / "run.json").is_file()


def test_a_run_that_is_stopped_is_not_overwritten_unless_asked_to(stopped):
    output, args = stopped
    assert "holds a run that is not finished; --resume resumes it" in refused(output, args)


def test_a_run_that_is_not_finished_has_nothing_to_evaluate(stopped):
    output, args = stopped
    message = refused(output, [a for a in args if a not in ("--do_train", "--evaluate_during_training")])
    assert "holds a run without a model: it is not finished, or" in message


# ------------------------------------------------------------------------------------ what is kept


def test_the_newest_checkpoints_are_kept_and_the_state_beside_the_last_one(bert_folder, mrpc, tmp_path, monkeypatch):
    output = tmp_path / "o"
    args = command(bert_folder, mrpc, output, *LINEAR.split(), "--save_steps", 2, "--save_total_limit", 2)
    stopped_run(9, monkeypatch, *args)
    folders = {path.name: path for path in output.glob("checkpoint-*")}
    assert set(folders) == {"checkpoint-6", "checkpoint-8", "checkpoint-9-stopped", "checkpoint-best"}
    assert [name for name in folders if (folders[name] / STATE).exists()] == ["checkpoint-9-stopped"]
    # The state holds the trained parameters and two moments of each.
    state = (folders["checkpoint-9-stopped"] / STATE).stat().st_size
    layers = [t for name, t in load_file(folders["checkpoint-8"] / "model.safetensors").items() if ".layer." in name]
    assert 3 * sum(t.nbytes for t in layers) < state < 3 * sum(t.nbytes for t in layers) + 60_000
    # Without it, and with it, it is a model like any other.
    for folder in folders.values():
        assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_hidden_layers == 2
    run_here(*args, "--resume")
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-12", "checkpoint-14", "checkpoint-best"}
    assert not list(output.rglob(STATE)) and not (output / UNFINISHED).exists()


@pytest.fixture(scope="module")
def regression(tmp_path_factory) -> tuple[Path, Path]:
    """A model and data with which one step after the other is the best."""
    folder = tmp_path_factory.mktemp("regression")
    return save_bert(folder / "model", num_labels=1), write_glue(folder / "STS-B", "sts-b")


def test_the_best_checkpoint_can_be_of_a_later_step_than_the_state(regression, tmp_path, monkeypatch):
    flags = "--task_name sts-b --logging_steps 1 --save_steps 3 --seed 5".split()
    expected, output = tmp_path / "expected", tmp_path / "o"
    run_here(*command(*regression, expected, *flags, *LINEAR.split()))
    args = command(*regression, output, *flags, *LINEAR.split())
    true_save, bests = Run.save_best, []

    def killed_after_the_fifth(run, write_model):
        true_save(run, write_model)
        bests.append(read_results(output / "checkpoint-best")["step"])
        if len(bests) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "save_best", killed_after_the_fifth)
        run_here(*args)
    assert bests[-1] > step_of(newest_state(output))
    run_here(*args, "--resume")
    assert_same_run(output, expected)


# ------------------------------------------------------------------------------------ what goes wrong


def test_a_loss_that_is_no_number_ends_the_run_before_anything_of_it_is_saved(bert_folder, mrpc, tmp_path):
    output = tmp_path / "o"
    args = command(bert_folder, mrpc, output, *LINEAR.split(), "--learning_rate", 1e15, "--save_steps", 1)
    with pytest.raises(SystemExit) as end:
        run_here(*args)
    told = "the loss is not a finite number at or shortly before step"
    step = int(
        re.fullmatch(rf"run_glue\.py: error: {told} (\d+): the learning rate may be too high", end.value.code)[1]
    )
    saved = [*output.rglob("*.safetensors")]
    assert saved and max(step_of(path) for path in checkpoint_folders(output)) == step - 1
    for path in saved:
        assert all(t.isfinite().all() for t in load_file(path).values() if t.is_floating_point())
    for line in (output / "log.jsonl").read_text().splitlines():
        assert all(math.isfinite(value) for value in json.loads(line).values())


def test_weights_that_are_no_numbers_are_not_saved_though_the_loss_is_one(bert_folder, mrpc, tmp_path):
    # Without an epsilon Adam makes 0 / 0 of the embeddings of words that no row has.
    args = command(bert_folder, mrpc, tmp_path / "o", "--adam_epsilon", 0)
    for more in (["--save_steps", 1], ["--max_steps", 1], ["--max_steps", 1, "--logging_steps", 1]):
        with pytest.raises(SystemExit, match=r"after step \d some weights are not finite numbers"):
            run_here(*args, *more, "--overwrite_output_dir")
        assert not list((tmp_path / "o").rglob("*.safetensors"))


@only_linear
@pytest.mark.parametrize("limit", [500, 30_000, 60_000])  # of a file: too little for logs, weights, state
def test_a_full_disk_ends_the_run_with_what_it_needs_and_the_last_state_intact(
    bert_folder, mrpc, uninterrupted, tmp_path, monkeypatch, capsys, limit
):
    expected, flags = uninterrupted
    output = tmp_path / "o"
    args = command(bert_folder, mrpc, output, *flags)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    true_step, steps = run_glue.train_step, iter(range(1, 100))

    def with_limit(*arguments):
        if next(steps) == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return true_step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(run_glue, "train_step", with_limit)
        try:
            run_here(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    cannot = rf"{output}/\S+ cannot be written \(File too large; .* are free\): raise the limit"
    assert re.match(
        rf"run_glue\.py: error: {cannot} .*, then resume with --resume from {output}/checkpoint-5", end.value.code
    )
    run_here(*args, "--resume")
    assert_same_run(output, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_ends_a_command_with_its_status(bert_folder, mrpc, tmp_path, number):
    output = tmp_path / "o"
    args = [*command(bert_folder, mrpc, output, *LINEAR.split()), "--max_steps", "1000000", "--save_steps", "100000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "run_glue.py", *args], cwd=ROOT, env=environment, **pipe)
    while not (output / "log.jsonl").is_file() or not (output / "log.jsonl").read_text():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Stopping after this step" in errors and f"stopped by {number.name} after step" in errors
    assert "Traceback" not in errors
    assert newest_state(output).name.endswith("-stopped")


# ------------------------------------------------------------------------------------ two at once


@only_linear
def test_a_second_run_in_the_same_folder_is_refused_and_a_lock_of_a_dead_one_is_not_heeded(
    bert_folder, mrpc, uninterrupted, tmp_path
):
    expected, flags = uninterrupted
    output = tmp_path / "o"
    args = command(bert_folder, mrpc, output, *flags)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, output], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    words = f"{output} is in use by process {holder.pid} on {socket.gethostname()}"
    for more in ([], ["--resume"], ["--overwrite_output_dir"]):
        assert words in refused(output, [*args, *more])
    assert words in refused(output, [a for a in args if a not in ("--do_train", "--evaluate_during_training")])
    holder.kill()
    holder.wait()
    assert (output / LOCK).exists()
    run_here(*args)
    assert_same_run(output, expected)
    assert not (output / LOCK).exists()


HOLD = """
import sys, pathlib
from bert_of_theseus.run.lock import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def test_of_two_that_start_at_once_in_one_folder_one_runs_and_one_is_refused(bert_folder, mrpc, tmp_path):
    data = shutil.copytree(mrpc, tmp_path / "MRPC")
    for cache in data.glob("cached*"):
        cache.unlink()
    outputs = [tmp_path / "same", tmp_path / "same", tmp_path / "other"]  # the cache is everybody's
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "run_glue.py", *command(bert_folder, data, output, *LINEAR.split())],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for output in outputs
    ]
    errors = [process.communicate(timeout=100)[1] for process in processes]
    statuses = [process.returncode for process in processes]
    assert sorted(statuses) == [0, 0, 1] and statuses[2] == 0, errors
    lost = errors[statuses.index(1)].splitlines()[-1]
    assert any(words in lost for words in ("is in use by", "is not empty", "not finished"))
    assert_same_run(*outputs[1:])
    assert len(list(data.glob("cached*"))) == 2 and not list(data.glob(".*"))


# --------------------------------------------------------------------------------------------- kill -9

# Forks a process for each run, as the imports take longer than the run, and kills it at a moment of time, or at the
# n-th thing that it does to a file: just before a swap, amid a deletion.
KILLER = """
import json, os, random, signal, sys, threading, time
import run_glue
KINDS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
for line in sys.stdin:
    order = json.loads(line)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, args):
            global count
            if event in KINDS:
                count += 1
                if count == order.get("event"):
                    os.kill(os.getpid(), signal.SIGKILL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.addaudithook(hook)
        status = 1
        try:
            run_glue.run_command(run_glue.parse_args(order["args"]))
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else print(end.code, file=sys.stderr) or 1
        finally:
            os.write(write_end, str(count).encode())
            os._exit(status)
    os.close(write_end)
    start = time.monotonic()
    if "seconds" in order:
        killer = threading.Timer(order["seconds"], os.kill, (pid, signal.SIGKILL))
        killer.start()
    _, status = os.waitpid(pid, 0)
    if "seconds" in order:
        killer.cancel()
    events = os.read(read_end, 100).decode()
    os.close(read_end)
    answer = {"killed": os.WIFSIGNALED(status), "status": os.waitstatus_to_exitcode(status)}
    print(json.dumps(answer | {"seconds": time.monotonic() - start, "events": int(events or 0)}), flush=True)
"""


@pytest.fixture(scope="module")
def killer():
    """A function that runs a command, perhaps kills it, and says how that went."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", KILLER], cwd=ROOT, env=environment, **pipes)

    def run(args: list[str], log: Path, **when: float) -> dict:
        print(json.dumps({"args": args, "log": str(log)} | when), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(60)


def assert_whole(output: Path) -> None:
    """Whatever the moment of a kill, all that has its name can be read."""
    for path in output.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(output).parts) or not path.is_file():
            continue
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "eval_results.txt":
            assert read_results(path.parent)
    for folder in output.glob("checkpoint-*"):
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


def kill_again_and_again(killer, model: Path, data: Path, tmp_path: Path, n_kills: int, seed: int) -> int:
    """Kill runs at random moments, resume each until it is done; returns how many were done."""
    rng = random.Random(seed)
    flags = "--task_name sts-b --eval_all_checkpoints --save_total_limit 2 --max_steps 24 --logging_steps 2".split()
    flags += [*LINEAR.split(), "--seed", seed]
    expected, log = tmp_path / "expected", tmp_path / "log"
    once = killer(command(model, data, expected, *flags), log)
    assert once["status"] == 0, log.read_text()
    scores = [json.loads(line).get("eval_corr", 0) for line in (expected / "log.jsonl").read_text().splitlines()]
    assert len({max(scores[:n]) for n in range(1, len(scores))}) > 3  # the best checkpoint is replaced again and again
    n_killed, n_done = 0, 0
    while n_killed < n_kills or n_done == 0:
        output, own_data = tmp_path / f"run-{n_done}", tmp_path / f"data-{n_done}"
        own_data.mkdir(exist_ok=True)
        for name in ("train.tsv", "dev.tsv"):
            shutil.copy(data / name, own_data)
        args = command(model, own_data, output, *flags, "--resume")
        when = {"seconds": rng.uniform(0, once["seconds"])}
        if rng.random() < 0.5:
            when = {"event": rng.randint(1, once["events"])}
        if n_killed == n_kills:
            when = {}
        done = killer(args, log, **when)
        if done["killed"]:
            n_killed += 1
            if output.is_dir():
                assert_whole(output)
            continue
        assert done["status"] == 0, log.read_text()
        assert_same_run(output, expected)
        assert not [path for path in output.rglob("*") if path.name.startswith(".")]
        n_done += 1
    return n_done


def test_a_run_that_is_killed_loses_nothing(killer, regression, tmp_path):
    assert kill_again_and_again(killer, *regression, tmp_path, n_kills=6, seed=1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_30_times_loses_nothing(killer, regression, tmp_path, seed):
    assert kill_again_and_again(killer, *regression, tmp_path, n_kills=30, seed=5 + seed) >= 1
