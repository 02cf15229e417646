"""Several processes on this machine's CPU, as torchrun starts them."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import save_bert, write_glue
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
TWO_PROCESSES = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
TRAIN = "--do_train --do_eval --evaluate_during_training --eval_all_checkpoints --num_train_epochs 2 --no_cuda "
TRAIN += "--gradient_accumulation_steps 2 --logging_steps 3 --save_steps 3 --learning_rate 1e-3 --max_seq_length 32 "
TRAIN += "--replacing_rate 0.5 --scheduler_type linear --scheduler_linear_k 0.1"


def start(launcher: list[str], *args: object) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, "run_glue.py", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    try:
        return process.communicate(timeout=150)
    finally:
        with contextlib.suppress(ProcessLookupError):  # a run that hangs leaves no processes behind either
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def mnli(tmp_path_factory) -> Path:
    # 57 rows in micro-batches of 8: the last one has a single row, and one process none.
    return write_glue(tmp_path_factory.mktemp("data") / "MNLI", "mnli", n_train=57, n_dev=23)


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory) -> Path:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return save_bert(tmp_path_factory.mktemp("model"), num_labels=3, **dropout)


def arguments(model: Path, data: Path, output: Path, batch_size: int) -> list:
    named = ["--task_name", "mnli", "--model_name_or_path", model, "--data_dir", data, "--output_dir", output]
    return [*named, *TRAIN.split(), "--per_gpu_train_batch_size", batch_size]


@pytest.fixture(scope="module")
def one_process(without_dropout, mnli, tmp_path_factory) -> tuple[Path, str]:
    """A run of one process with batches of 8: its folder and what it printed."""
    output = tmp_path_factory.mktemp("one") / "output"
    process = start([], *arguments(without_dropout, mnli, output, 8))
    out, err = finish(process)
    assert process.returncode == 0, err
    return output, out


def without_seconds(table: list[str]) -> list[list[str]]:
    return [line.split()[:-1] for line in table]


def assert_the_same_run(output: Path, printed: str, one_process: tuple[Path, str]) -> None:
    expected_output, expected = one_process
    for name, weight in load_file(expected_output / "model.safetensors").items():
        if "key.bias" not in name:  # its true gradient is zero: Adam makes steps of the rounding errors
            torch.testing.assert_close(load_file(output / "model.safetensors")[name], weight, atol=1e-5, rtol=0)
    lines, expected_lines = printed.splitlines(), expected.splitlines()
    assert len(lines) == len(expected_lines)
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (output, expected_output)]
    for line, expected_line in zip(*logs, strict=True):
        assert json.loads(line) == pytest.approx(json.loads(expected_line), abs=1e-5)
    assert without_seconds(lines[-3:]) == without_seconds(expected_lines[-3:])
    assert (output / "eval_results.txt").read_text() == (expected_output / "eval_results.txt").read_text()
    files, expected_files = (
        sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "tfevents" not in p.name)
        for folder in (output, expected_output)
    )
    assert files == expected_files and len(list((output / "runs").iterdir())) == 1


def test_two_processes_make_the_run_of_one_with_twice_the_batch(without_dropout, mnli, one_process, tmp_path):
    output = tmp_path / "output"
    process = start(TWO_PROCESSES, *arguments(without_dropout, mnli, output, 4))
    out, err = finish(process)
    assert process.returncode == 0, err
    assert "8 with 16 rows each" in err and "2 processes, 4 rows each" in err
    assert err.count("Predecessor ") == 2  # its size and its score, each said once
    assert_the_same_run(output, out, one_process)
    assert json.loads((output / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_two_nodes_that_meet_on_the_network_make_it_too(without_dropout, mnli, one_process, tmp_path):
    output = tmp_path / "output"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = "-m torch.distributed.run --nnodes=2 --nproc_per_node=1 --rdzv_backend=c10d --rdzv_id=test".split()
    launcher += [f"--rdzv_endpoint=127.0.0.1:{port}", "--local_addr=127.0.0.1"]
    nodes = [start(launcher, *arguments(without_dropout, mnli, output, 4)) for _ in range(2)]
    (out, err), (other_out, other_err) = map(finish, nodes)
    assert [node.returncode for node in nodes] == [0, 0], err + other_err
    assert not (out and other_out)  # one of them holds the main process
    assert_the_same_run(output, out or other_out, one_process)


def test_what_a_user_did_wrong_is_told_once_by_all_processes_together(without_dropout, mnli, tmp_path):
    process = start(TWO_PROCESSES, *arguments(without_dropout, tmp_path / "no", tmp_path / "output", 4))
    out, err = finish(process)
    assert process.returncode == 1 and out == ""
    assert [line for line in err.splitlines() if "run_glue.py: error" in line] == [
        f"run_glue.py: error: {tmp_path}/no/train.tsv: no such file; mnli's train set should be there (MNLI of GLUE)"
    ]
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model"), num_labels=3)


MANY_STEPS = "--max_steps 120 --logging_steps 10 --save_steps 50".split()


@pytest.fixture(scope="module")
def many_steps(with_dropout, mnli, tmp_path_factory) -> tuple[Path, str]:
    """A run of two processes: its folder and what it printed."""
    output = tmp_path_factory.mktemp("many") / "output"
    process = start(TWO_PROCESSES, *arguments(with_dropout, mnli, output, 4), *MANY_STEPS)
    out, err = finish(process)
    assert process.returncode == 0, err
    return output, out


@pytest.mark.parametrize("receiver", ["one process", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_processes_stop_after_the_same_step_and_are_resumed_together(
    with_dropout, mnli, many_steps, tmp_path, receiver
):
    expected, printed = many_steps
    output = tmp_path / "output"
    args = [*arguments(with_dropout, mnli, output, 4), *MANY_STEPS]
    process = start(TWO_PROCESSES, *args)
    try:
        wait_for_log(output)
        worker = [pid for pid in children(process.pid) if "run_glue.py" in command_line(pid)][1]
        os.kill(worker if receiver == "one process" else process.pid, signal.SIGTERM)
    finally:
        first_part, err = finish(process)
    assert process.returncode != 0
    (told,) = [line for line in err.splitlines() if line.startswith("run_glue.py: ")]
    step = int(
        re.fullmatch(
            r"run_glue.py: stopped by SIGTERM after step (\d+); the same command with --resume resumes it", told
        )[1]
    )
    assert 10 <= step < 120 and 'run_glue.py", line' not in err
    (state,) = output.glob("checkpoint-*-stopped/training_state.pt")
    ours, others = (of["random"] for of in torch.load(state, weights_only=True)["processes"])
    assert not torch.equal(ours, others)  # each process has dropout of its own

    process = start(TWO_PROCESSES, *args, "--resume")
    second_part, err = finish(process)
    assert process.returncode == 0, err
    assert [part["after_step"] for part in json.loads((output / "run.json").read_text())["resumed"]] == [step]
    for name in ("model.safetensors", "checkpoint-best/model.safetensors", "log.jsonl", "eval_results.txt"):
        assert (output / name).read_bytes() == (expected / name).read_bytes(), name
    assert (first_part + second_part).splitlines()[:-4] == printed.splitlines()[:-4]


def wait_for_log(output: Path) -> None:
    log, deadline = output / "log.jsonl", time.monotonic() + 100
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.stat().st_size


def test_all_processes_end_when_one_is_killed(without_dropout, mnli, tmp_path):
    output = tmp_path / "output"
    args = arguments(without_dropout, mnli, output, 4)
    process = start(TWO_PROCESSES, *args, "--max_steps", 10**6, "--save_steps", 10**6)
    try:
        workers = []
        wait_for_log(output)
        workers = [pid for pid in children(process.pid) if "run_glue.py" in command_line(pid)]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
    finally:
        ended = time.monotonic()
        _, err = finish(process)
    assert process.returncode == 1 and time.monotonic() - ended < 60
    assert not [pid for pid in workers if "run_glue.py" in command_line(pid)]
    ours = [line for line in err.splitlines() if line.startswith("run_glue.py: ")]
    assert len(ours) <= 1 and all("lost the other processes of this run" in line for line in ours)
    assert 'run_glue.py", line' not in err  # torchrun's own report has a traceback, ours has none
    assert not list(output.rglob("*.tmp")) and not (output / "run.json").exists()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@pytest.mark.slow
def test_two_processes_take_files_of_ones_own_and_stop_early_as_one_does(tmp_path, without_dropout):
    labels = ["no", "perhaps", "yes"]
    for name, n_rows in (("train", 40), ("dev", 13)):
        rows = [{"sentence": f"good film {'very ' * (i % 5)}", "label": labels[i % 3]} for i in range(n_rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "new.csv").write_text("sentence\ngood\n\nbad film\n")
    flags = ["--train_file", tmp_path / "train.jsonl", "--validation_file", tmp_path / "dev.jsonl"]
    flags += ["--test_file", tmp_path / "new.csv", "--model_name_or_path", without_dropout, "--max_steps", 60]
    flags += "--do_train --do_eval --evaluate_during_training --early_stopping_patience 2 --logging_steps 3".split()
    flags += "--save_steps 0 --max_seq_length 32 --learning_rate 1e-4 --no_cuda".split()
    flags += "--replacing_rate 0.5 --steps_for_replacing 5 --finetune_whole_successor".split()
    for launcher, name, batch_size in (([], "one", 8), (TWO_PROCESSES, "two", 4)):
        more = ["--output_dir", tmp_path / name, "--per_device_train_batch_size", batch_size]
        process = start(launcher, *flags, *more)
        _, err = finish(process)
        assert process.returncode == 0, err
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert records[0]["steps"] == records[1]["steps"] < 60
    assert records[0]["best"]["metrics"] == pytest.approx(records[1]["best"]["metrics"])
    ours, theirs = ((tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("one", "two"))
    assert len(ours) == 4 and [row.split(",")[:2] for row in ours] == [row.split(",")[:2] for row in theirs]
