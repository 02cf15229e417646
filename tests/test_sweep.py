"""scripts/sweep.sh: which runs it makes, on which GPU, what it says, and that it ends what it started."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import save_bert, write_glue

import run_glue

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "scripts" / "sweep.sh"

# An interpreter that notes what it is to run, on which GPU and when. run_glue.py itself needs no GPU in these tests.
FAKE_PYTHON = f"""#!{sys.executable} -IS
import json, os, sys, time
folder = sys.argv[sys.argv.index("--output_dir") + 1]
note = dict(folder=folder, gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), start=time.time(), pid=os.getpid())
os.makedirs(folder, exist_ok=True)
open(folder + "/pid", "w").write(str(os.getpid()))
time.sleep(float(os.environ["RUN_SECONDS"]))
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps(note | dict(end=time.time())) + chr(10))
open(folder + "/run.json", "w").write("{{}}")
"""
FAKE_NVIDIA_SMI = "#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n"


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def settings(tmp_path) -> dict[str, str]:
    """The smallest grid, of one run, in folders whose names need quotes."""
    write_glue(tmp_path / "the data" / "MRPC", "mrpc")
    save_bert(tmp_path / "the models" / "MRPC")
    return {
        "TASKS": "MRPC",
        "KS": "0.1",
        "GLUE_DIR": str(tmp_path / "the data"),
        "PREDECESSORS": str(tmp_path / "the models"),
        "OUTPUT_DIR": str(tmp_path / "the runs"),
    }


@pytest.fixture
def fakes(tmp_path) -> dict[str, str]:
    """A fake interpreter, on a machine with two GPUs."""
    executable(tmp_path / "bin" / "nvidia-smi", FAKE_NVIDIA_SMI)
    return {
        "PYTHON": str(executable(tmp_path / "bin" / "fake_python", FAKE_PYTHON)),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes.jsonl"),
        "RUN_SECONDS": "0",
    }


def start(settings: dict[str, str], *args: str) -> subprocess.Popen:
    ours = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | settings
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | ours
    pipe = subprocess.PIPE
    return subprocess.Popen([SWEEP, *args], env=environment, stdout=pipe, stderr=pipe, text=True)


def sweep(settings: dict[str, str], *args: str) -> subprocess.CompletedProcess:
    process = start(settings, *args)
    output = process.communicate(timeout=100)
    return subprocess.CompletedProcess(args, process.returncode, *output)


def notes(settings: dict[str, str]) -> list[dict]:
    return [json.loads(line) for line in Path(settings["NOTES"]).read_text().splitlines()]


def test_a_failed_run_does_not_stop_the_others_and_a_second_call_makes_only_what_is_missing(settings):
    settings |= {"REPLACING_RATES": "1.5 0.3", "CUDA_VISIBLE_DEVICES": ""}  # a rate of 1.5 is none
    arguments = "-- --max_steps 2 --logging_steps 1 --save_steps 1 --max_seq_length 32 --no_cuda".split()
    done = sweep(settings, *arguments)
    failing, working = (
        Path(settings["OUTPUT_DIR"], f"MRPC/linear-rate{rate}-k0.1-lr2e-5-seed42") for rate in (1.5, 0.3)
    )
    record = json.loads((working / "run.json").read_text())
    assert record["steps"] == 2 and record["best"] and record["arguments"]["scheduler_linear_k"] == 0.1
    assert (working / "checkpoint-2").is_dir()  # the arguments after -- win
    assert "successor, last step (2)" in Path(f"{working}.log").read_text()
    said = done.stdout.splitlines()
    assert [line.split(" after")[0] for line in said] == [
        f"MRPC/{failing.name}: started",
        f"MRPC/{failing.name}: failed",
        f"MRPC/{working.name}: started",
        f"MRPC/{working.name}: finished",
    ]
    assert done.returncode == 1
    message, log = done.stderr.splitlines()
    assert message.startswith("sweep.sh: 1 of 2 runs failed")
    assert log.startswith(f"  {failing}.log: run_glue.py: error: --replacing_rate")

    made = (working / "run.json").stat()
    again = sweep(settings, *arguments)
    assert again.returncode == 1 and working.name not in again.stdout and failing.name in again.stderr
    assert (working / "run.json").stat() == made


def test_a_run_whose_log_cannot_be_written_has_failed(settings):
    log = Path(settings["OUTPUT_DIR"]) / "MRPC" / "linear-rate0.3-k0.1-lr2e-5-seed42.log"
    log.mkdir(parents=True)
    done = sweep(settings)
    assert done.returncode == 1 and "are finished" not in done.stdout
    assert done.stderr.splitlines()[-1] == f"  {log}: cannot be written"


def test_list_prints_one_command_for_each_unfinished_setting_and_runs_nothing(settings, tmp_path):
    settings |= {"KS": "0.1 0.01", "STEPS": "25", "LEARNING_RATES": "2e-5 5e-5", "SEEDS": "42 43"}
    finished = tmp_path / "the runs" / "MRPC" / "linear-rate0.3-k0.01-lr5e-5-seed43"
    finished.mkdir(parents=True)
    (finished / "run.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    done = sweep(settings, "--list", "--", "--config_name", "it's $HOME/a; b")
    assert done.returncode == 0 and not done.stderr and sorted(tmp_path.rglob("*")) == before
    found = {}
    for command in done.stdout.splitlines():
        # What bash makes of the line, not what Python's shlex does.
        words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
        gpu, interpreter, script, *flags = words.stdout.split("\0")[:-1]
        assert gpu == f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 0)}"
        args = run_glue.parse_args(flags)
        assert (interpreter, script) == (sys.executable, str(ROOT / "run_glue.py"))
        assert args.config_name == "it's $HOME/a; b" and args.data_dir == str(tmp_path / "the data" / "MRPC")
        assert args.do_train and args.do_eval and args.evaluate_during_training and args.resume
        schedule = args.scheduler_type, args.scheduler_linear_k, args.steps_for_replacing
        found[Path(args.output_dir).name] = (args.seed, args.learning_rate, args.replacing_rate, *schedule)
    assert len(found) == (2 + 1) * 2 * 2 - 1 and finished.name not in found
    assert found["linear-rate0.3-k0.1-lr2e-5-seed42"] == (42, 2e-5, 0.3, "linear", 0.1, 0)
    assert found["constant-rate0.3-steps25-lr5e-5-seed43"] == (43, 5e-5, 0.3, "none", 0, 25)
    assert [seed for seed, *_ in found.values()] == [42] * 6 + [43] * 5  # all settings with the first seed first


def test_files_of_ones_own_take_the_place_of_tasks(settings, tmp_path):
    own = {name: settings[name] for name in ("KS", "OUTPUT_DIR")} | {"PREDECESSOR": f"{settings['PREDECESSORS']}/MRPC"}
    for name in ("TRAIN_FILE", "VALIDATION_FILE"):
        own[name] = str(tmp_path / "the data" / f"{name}.csv")
        Path(own[name]).write_text("sentence,label\n")
    (command,) = sweep(own, "--list").stdout.splitlines()
    args = run_glue.parse_args(shlex.split(command)[3:])
    assert (args.train_file, args.validation_file) == (own["TRAIN_FILE"], own["VALIDATION_FILE"])
    assert (args.model_name_or_path, args.task_name) == (own["PREDECESSOR"], None)
    assert args.output_dir == f"{settings['OUTPUT_DIR']}/the_data-TRAIN_FILE/linear-rate0.3-k0.1-lr2e-5-seed42"
    for changes, message in [
        ({"VALIDATION_FILE": ""}, "VALIDATION_FILE is not set"),
        ({"TRAIN_FILE": "/no.csv"}, "TRAIN_FILE: there is no file /no.csv"),
        ({"PREDECESSOR": "/nowhere"}, "PREDECESSOR: there is no model in /nowhere"),
        ({"TASKS": "MRPC"}, "TRAIN_FILE is for your own data: unset GLUE_DIR, TASKS, PREDECESSORS"),
    ]:
        done = sweep(own | changes)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("visible", "expected"), [(None, {"0", "1"}), ("5,GPU-3f", {"5", "GPU-3f"}), ("", {""})])
def test_each_visible_gpu_has_one_run_at_a_time(settings, fakes, visible, expected):
    settings |= fakes | {"SEEDS": "1 2 3 4", "RUN_SECONDS": "0.2"}
    if visible is not None:
        settings["CUDA_VISIBLE_DEVICES"] = visible
    done = sweep(settings)
    assert done.returncode == 0, done.stderr
    runs = notes(settings)
    assert len({run["folder"] for run in runs}) == len(runs) == 4
    assert {run["gpu"] for run in runs} == expected
    for gpu in expected:
        ours = sorted((run["start"], run["end"]) for run in runs if run["gpu"] == gpu)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ours))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_leaves_no_process_and_makes_the_rest_when_called_again(settings, fakes, number):
    settings |= fakes | {"SEEDS": "1 2 3", "RUN_SECONDS": "60"}
    process = start(settings)
    end = time.monotonic() + 20
    while len(pids := [p.read_text() for p in Path(settings["OUTPUT_DIR"]).glob("*/*/pid")]) < 2 or "" in pids:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "failed" not in output
    assert errors == "sweep.sh: stopped; the same command resumes\n"
    assert not [pid for pid in pids if Path("/proc", pid).exists()]
    again = sweep(settings | {"RUN_SECONDS": "0"})
    assert again.returncode == 0 and again.stdout.count("finished after") == 3


def test_without_slopes_and_steps_the_linear_rate_is_1_after_half_of_them(settings):
    done = sweep(settings | {"KS": "", "LEARNING_RATES": "2e-5 5e-5"}, "--list")
    runs = [run_glue.parse_args(shlex.split(line)[3:]) for line in done.stdout.splitlines()]
    assert [Path(args.output_dir).name for args in runs] == [f"linear-rate0.3-lr{lr}-seed42" for lr in ("2e-5", "5e-5")]
    assert all((args.scheduler_type, args.scheduler_linear_k) == ("linear", None) for args in runs)


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        ({"GLUE_DIR": ""}, [], "GLUE_DIR is not set"),
        ({"GLUE_DIR": "/nowhere"}, [], "GLUE_DIR: there is no folder /nowhere/MRPC"),
        ({"PREDECESSORS": "/nowhere"}, [], "PREDECESSORS: there is no model in /nowhere/MRPC"),
        ({"OUTPUT_DIR": f"{__file__}/runs"}, [], f"OUTPUT_DIR: {__file__}/runs/MRPC cannot be made"),
        ({"LEARNING_RATES": "2e-5,5e-5"}, [], "LEARNING_RATES: 2e-5,5e-5 is not a number"),
        ({"SEEDS": "$(touch x) *"}, [], "SEEDS: $(touch is not a number"),
        ({}, ["--dry-run"], "unknown argument --dry-run"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_starts(settings, changes, args, message):
    done = sweep(settings | changes, *args)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not Path(settings["OUTPUT_DIR"]).exists()


def test_help_names_every_variable(settings):
    done = sweep({}, "--help")
    assert done.returncode == 0 and not done.stderr
    assert all(len(line) <= 120 for line in done.stdout.splitlines())
    names = "TRAIN_FILE VALIDATION_FILE PREDECESSOR LEARNING_RATES REPLACING_RATES STEPS SEEDS PYTHON".split()
    for name in (*settings, *names, "CUDA_VISIBLE_DEVICES"):
        assert name in done.stdout
