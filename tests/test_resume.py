"""Runs that end before their end, and go on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import save_bert, write_glue
from safetensors.torch import load_file, save_file
from test_run_glue import arguments, read_results, run_here, scalars

from bert_of_theseus import run_folder, training_state

ROOT = Path(__file__).parents[1]
LINEAR = "--replacing_rate 0.3 --scheduler_type linear --scheduler_linear_k 0.05"
CONSTANT = "--replacing_rate 0.2 --steps_for_replacing 9"
EACH = ["linear", "constant", "fine-tuning"]
SCHEDULES = dict(zip(EACH, (LINEAR, CONSTANT, ""), strict=True))
STEPS = "--do_train --do_eval --evaluate_during_training --max_steps 14 --logging_steps 4 --save_steps 5 "
STEPS += "--weight_decay 0.01 --warmup_steps 2 --gradient_accumulation_steps 2"


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data") / "MRPC", "mrpc")


def command(model: Path, data: Path, output: Path, *flags: object) -> list[str]:
    return arguments("mrpc", model, data, output, *STEPS.split(), *flags)


def without_times(record: dict) -> dict:
    """What of a run.json does not depend on when, where and how often it was gone on with."""
    record = {k: v for k, v in record.items() if k not in {"start", "end", "command", "training_seconds"}}
    record["arguments"] = {k: v for k, v in record["arguments"].items() if k not in {"output_dir", "resume"}}
    record["resumed_after_steps"] = None
    for name in ("last", "best", "predecessor"):
        record[name] = {k: v for k, v in record.get(name, {}).items() if k != "seconds"}
    return record


def event_values(folder: Path) -> dict[str, dict[int, float]]:
    """TensorBoard's scalars of all event files, each point there once."""
    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("runs/events.*"):
        copy = folder.parent / "one" / "runs"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        shutil.copy(path, copy)
        for name, values in scalars(copy.parent).items():
            assert not found.setdefault(name, {}).keys() & values.keys()
            found[name] |= values
    return found


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
    assert event_values(folder) == event_values(expected)


def stop_after(step: int, monkeypatch, number: int = signal.SIGTERM, second: int = 0) -> None:
    """Send this process a signal in the middle of a step."""
    import run_glue

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


@pytest.fixture(scope="module", params=EACH)
def uninterrupted(request, bert_folder, mrpc, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / request.param
    flags = SCHEDULES[request.param].split()
    run_here(*command(bert_folder, mrpc, output, *flags))
    return output, flags


# ------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("step", [1, 4, 5, 7, 13, 14])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(
    bert_folder, mrpc, uninterrupted, tmp_path, monkeypatch, step
):
    expected, flags = uninterrupted
    args = command(bert_folder, mrpc, tmp_path / "o", *flags)
    stopped_run(step, monkeypatch, *args)
    torch.rand(7)  # a process of its own would not have this one's random state either
    run_here(*args, "--resume")
    assert_same_run(tmp_path / "o", expected)
    assert json.loads((tmp_path / "o" / "run.json").read_text())["resumed_after_steps"] == [step]
