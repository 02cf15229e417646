"""Runs that end before their end, and go on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_glue
from safetensors.torch import load_file
from test_run_glue import arguments, read_results, run_here, scalars

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
    record["arguments"] = {
        k: v for k, v in record["arguments"].items() if k not in {"output_dir", "data_dir", "resume"}
    }
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


# --------------------------------------------------------------------------------------------- kill -9

# Forks a process for each run, as the imports take longer than the run, and kills it at a moment of time, or at the
# n-th thing that it does to a file: just before a swap, amid a deletion.
KILLER = """
import json, os, random, signal, sys, threading, time
import run_glue
KINDS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "ctypes.dlsym"}
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
            run_glue.main(run_glue.parse_args(order["args"]))
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
    """Kill runs at random moments, go on with each until it is done; returns how many were done."""
    rng = random.Random(seed)
    flags = [*LINEAR.split(), "--eval_all_checkpoints", "--save_total_limit", 2, "--max_steps", 24]
    expected, log = tmp_path / "expected", tmp_path / "log"
    once = killer(command(model, data, expected, *flags), log)
    assert once["status"] == 0, log.read_text()
    n_killed, n_done, best_seen = 0, 0, False
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
                # Once there is a best checkpoint there always is.
                best_seen = best_seen or (output / "checkpoint-best").is_dir()
                assert not best_seen or (output / "checkpoint-best" / "config.json").is_file()
            continue
        assert done["status"] == 0, log.read_text()
        assert_same_run(output, expected)
        assert not [path for path in output.rglob("*") if path.name.startswith(".")]
        n_done, best_seen = n_done + 1, False
    return n_done


def test_a_run_that_is_killed_loses_nothing(killer, bert_folder, mrpc, tmp_path):
    assert kill_again_and_again(killer, bert_folder, mrpc, tmp_path, n_kills=6, seed=1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_30_times_loses_nothing(killer, bert_folder, mrpc, tmp_path, seed):
    assert kill_again_and_again(killer, bert_folder, mrpc, tmp_path, n_kills=30, seed=100 + seed) >= 1
