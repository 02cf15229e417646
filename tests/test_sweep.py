"""scripts/sweep.sh: what it runs, what it leaves out, what it says, and that it ends what it started."""

import itertools
import json
import os
import shlex
import shutil
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

# An interpreter that notes what it is to run and on which GPU, and takes a while; run_glue.py itself needs no GPU here.
FAKE_PYTHON = f"""#!{sys.executable} -IS
import json, os, sys, time
if sys.argv[1] == "-c":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
words = sys.argv[2:]
folder, seed = words[words.index("--output_dir") + 1], words[words.index("--seed") + 1]
with open(folder + "/pids", "w") as file:
    print(os.getpid(), os.getppid(), file=file)
note = dict(folder=folder, gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), start=time.time())
time.sleep(float(os.environ["RUN_SECONDS"]))
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps(note | dict(end=time.time())) + chr(10))
if seed == "13":
    sys.exit("seed 13 is unlucky")
with open(folder + "/run.json", "w") as file:
    json.dump(dict(main_metric="acc", last=dict(main=0.75)), file)
"""
FAKE_NVIDIA_SMI = "#!/bin/sh\necho 0\necho 1\n"


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def settings(tmp_path) -> dict[str, str]:
    """The smallest grid, of one run, in folders whose names need quotes."""
    write_glue(tmp_path / "the data" / "MRPC", "mrpc")
    predecessor = tmp_path / "the models" / "MRPC"
    predecessor.mkdir(parents=True)
    (predecessor / "config.json").write_text("{}")
    return {
        "TASKS": "MRPC",
        "KS": "0.1",
        "GLUE_DIR": str(tmp_path / "the data"),
        "PREDECESSORS": str(tmp_path / "the models"),
        "OUTPUT_DIR": str(tmp_path / "the runs"),
    }


@pytest.fixture
def fakes(tmp_path) -> dict[str, str]:
    """An environment with a fake interpreter and a machine that has two GPUs."""
    executable(tmp_path / "bin" / "nvidia-smi", FAKE_NVIDIA_SMI)
    return {
        "PYTHON": str(executable(tmp_path / "bin" / "fake_python", FAKE_PYTHON)),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes.jsonl"),
        "RUN_SECONDS": "0",
    }


def environment(settings: dict[str, str]) -> dict[str, str]:
    ours = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | ours | settings


def start(settings: dict[str, str], *args: str, **kwargs) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen([SWEEP, *args], env=environment(settings), stdout=pipe, stderr=pipe, text=True, **kwargs)


def sweep(settings: dict[str, str], *args: str, **kwargs) -> subprocess.CompletedProcess:
    process = start(settings, *args, **kwargs)
    output = process.communicate(timeout=200)
    return subprocess.CompletedProcess(args, process.returncode, *output)


def notes(settings: dict[str, str]) -> list[dict]:
    return [json.loads(line) for line in Path(settings["NOTES"]).read_text().splitlines()]


def process_ids(settings: dict[str, str]) -> list[int]:
    """Of the fake runs that have begun, and of the shells that began them."""
    files = Path(settings["OUTPUT_DIR"]).glob("MRPC/*/pids")
    return [int(pid) for file in files for pid in file.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition) -> None:
    end = time.time() + 20
    while not condition():
        assert time.time() < end
        time.sleep(0.02)


# --------------------------------------------------------------------------------- with real runs


def test_a_failed_run_does_not_stop_the_others_and_a_second_call_makes_only_what_is_missing(settings, tmp_path):
    save_bert(tmp_path / "the models" / "MRPC")
    # 1e999 is a number for the sweep, but infinite for run_glue.py.
    settings |= {"LEARNING_RATES": "1e999 1e-3", "OUTPUT_DIR": "runs", "CUDA_VISIBLE_DEVICES": ""}
    folder = tmp_path / "runs" / "MRPC"
    failing, working = (folder / f"linear-rate0.3-k0.1-lr{lr}-seed42" for lr in ("1e999", "1e-3"))
    (working / ".checkpoint-best.1.tmp").mkdir(parents=True)  # a run was killed here
    (working / "log.jsonl").write_text("{")
    arguments = "-- --max_steps 4 --logging_steps 2 --save_steps 3 --max_seq_length 32 --no_cuda".split()

    done = sweep(settings, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    run = json.loads((working / "run.json").read_text())
    assert run["task"] == "mrpc" and run["steps"] == 4 and run["predecessor"] and run["best"]
    assert run["arguments"]["scheduler_linear_k"] == 0.1 and run["arguments"]["scheduler_type"] == "linear"
    assert (working / "checkpoint-3").is_dir()  # the arguments after -- win
    assert len((working / "log.jsonl").read_text().splitlines()) == 4
    assert not list(working.glob(".*"))
    assert "successor, last step (4)" in (working / "sweep.log").read_text()
    assert not (failing / "run.json").exists()

    first, *progress = done.stdout.splitlines()
    assert first == "runs to make: 2, 1 at a time; finished already: 0"
    names = [f"MRPC/{failing.name}", f"MRPC/{working.name}"]
    assert progress[0] == f"1 of 2: {names[0]}: started"
    assert progress[1].startswith(f"1 of 2: {names[0]}: failed with status 2 after ")
    assert progress[2] == f"2 of 2: {names[1]}: started"
    assert progress[3].startswith(f"2 of 2: {names[1]}: acc_and_f1 {round(run['last']['main'], 4)} after ")
    message, failed = done.stderr.splitlines()
    assert message.startswith("sweep.sh: 1 of 2 runs failed")
    assert failed.startswith(f"  {failing}/sweep.log: run_glue.py: error: argument --learning_rate: ")

    made = (working / "run.json").stat()
    again = sweep(settings, *arguments, cwd=tmp_path)
    assert again.returncode == 1
    assert again.stdout.startswith("runs to make: 1, 1 at a time; finished already: 1\n")
    assert working.name not in again.stdout and failing.name in again.stderr
    assert (working / "run.json").stat() == made


# ------------------------------------------------------------------------------------------- list


def test_list_prints_one_command_for_each_setting_that_is_not_finished_and_runs_nothing(settings, tmp_path):
    settings |= {"KS": "0.1 0.01", "STEPS": "25", "LEARNING_RATES": "2e-5 5e-5", "SEEDS": "42 43 42"}
    finished = tmp_path / "the runs" / "MRPC" / "linear-rate0.3-k0.01-lr5e-5-seed43"
    finished.mkdir(parents=True)
    (finished / "run.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    done = sweep(settings, "--list", "--", "--config_name", "it's $HOME/a; b")
    assert done.returncode == 0 and not done.stderr
    assert sorted(tmp_path.rglob("*")) == before

    commands = done.stdout.splitlines()
    assert len(commands) == (2 + 1) * 2 * 2 - 1
    found = {}
    for command in commands:
        # What bash makes of the line, not what Python's shlex does.
        words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
        interpreter, script, *flags = words.stdout.split("\0")[:-1]
        assert (interpreter, script) == (sys.executable, str(ROOT / "run_glue.py"))
        args = run_glue.parse_args(flags)
        assert args.config_name == "it's $HOME/a; b"
        assert args.do_train and args.do_eval and args.evaluate_during_training and args.save_steps == 0
        assert args.data_dir == str(tmp_path / "the data" / "MRPC")
        assert args.model_name_or_path == str(tmp_path / "the models" / "MRPC")
        folder = Path(args.output_dir)
        assert folder.parent == tmp_path / "the runs" / "MRPC"
        schedule = args.scheduler_type, args.scheduler_linear_k, args.steps_for_replacing
        found[folder.name] = (args.seed, args.learning_rate, args.replacing_rate, *schedule)
    assert len(found) == len(commands) and finished.name not in found
    assert found["linear-rate0.3-k0.1-lr2e-5-seed42"] == (42, 2e-5, 0.3, "linear", 0.1, 0)
    assert found["constant-rate0.3-steps25-lr5e-5-seed43"] == (43, 5e-5, 0.3, "none", 0, 25)
    assert [value[0] for value in found.values()] == [42] * 6 + [43] * 5  # all settings with the first seed first


# ------------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, {"0", "1"}), ("5,7,9", {"5", "7", "9"}), ("GPU-3f", {"GPU-3f"}), ("", {""})]
)
def test_each_visible_gpu_has_one_run_at_a_time(settings, fakes, visible, expected):
    settings |= fakes | {"SEEDS": "1 2 3 4 5 6", "RUN_SECONDS": "0.25"}
    if visible is not None:
        settings["CUDA_VISIBLE_DEVICES"] = visible
    done = sweep(settings)
    assert done.returncode == 0, done.stderr
    assert f"runs to make: 6, {len(expected)} at a time" in done.stdout
    runs = notes(settings)
    assert len({run["folder"] for run in runs}) == len(runs) == 6
    assert {run["gpu"] for run in runs} == expected
    for gpu in expected:
        ours = sorted((run["start"], run["end"]) for run in runs if run["gpu"] == gpu)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ours))
    assert done.stdout.count("acc 0.75 after") == 6
    assert not any(f"started on GPU {gpu}\n" not in done.stdout for gpu in expected if gpu)


def test_a_failing_nvidia_smi_means_no_gpu(settings, fakes, tmp_path):
    executable(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\necho 9 devices, but no driver\nexit 9\n")
    done = sweep(settings | fakes)
    assert done.returncode == 0 and "1 at a time" in done.stdout
    assert [run["gpu"] for run in notes(fakes)] == [None]


# --------------------------------------------------------------------------- several sweeps, stops


def test_two_sweeps_at_once_share_the_runs_and_none_is_made_twice(settings, fakes):
    settings |= fakes | {"SEEDS": "1 2 3 13 4 5", "RUN_SECONDS": "0.3"}
    both = [start(settings) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    folders = [run["folder"] for run in notes(settings) if "seed13" not in run["folder"]]
    assert len(set(folders)) == len(folders) == 5
    assert "left to another sweep" in outputs[0][0] + outputs[1][0]
    assert 1 in [process.returncode for process in both]  # seed 13 fails wherever it runs
    assert "seed 13 is unlucky" in outputs[0][1] + outputs[1][1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_sweep_leaves_no_process_and_goes_on_when_called_again(settings, fakes, tmp_path, number):
    settings |= fakes | {"SEEDS": "1 2 3", "RUN_SECONDS": "60", "TMPDIR": str(tmp_path)}
    process = start(settings)
    wait_for(lambda: len(process_ids(settings)) == 4)  # two runs and the shells that started them
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "sweep.sh: stopped; the same command goes on\n"
    assert "failed" not in output
    assert not [pid for pid in process_ids(settings) if is_alive(pid)]
    assert not list(tmp_path.glob("tmp.*"))

    again = sweep(settings | {"RUN_SECONDS": "0"})
    assert again.returncode == 0 and again.stdout.startswith("runs to make: 3,")


def test_a_run_that_outlives_its_killed_sweep_is_not_made_again_beside_it(settings, fakes):
    settings |= fakes | {"RUN_SECONDS": "1.5", "CUDA_VISIBLE_DEVICES": ""}
    process = start(settings)
    wait_for(lambda: process_ids(settings))
    process.kill()
    again = sweep(settings)
    assert "left to another sweep" in again.stdout
    process.communicate(timeout=20)
    wait_for(lambda: Path(settings["NOTES"]).exists())
    assert len(notes(settings)) == 1


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        ({"GLUE_DIR": ""}, [], "GLUE_DIR is not set"),
        ({"TASKS": " "}, [], "TASKS is not set"),
        ({"GLUE_DIR": "/nowhere"}, [], "GLUE_DIR: there is no folder /nowhere/MRPC"),
        ({"TASKS": "MRPC RTE"}, [], "/the data/RTE"),
        ({"PREDECESSORS": "/nowhere"}, [], "PREDECESSORS: there is no model in /nowhere/MRPC"),
        ({"KS": "", "STEPS": " "}, [], "neither KS (linear schedule) nor STEPS (constant rate) is set"),
        ({"LEARNING_RATES": "2e-5,5e-5"}, [], "LEARNING_RATES: 2e-5,5e-5 is not a number"),
        ({"REPLACING_RATES": "0.3 1.5"}, [], "REPLACING_RATES: 1.5 is not"),
        ({"REPLACING_RATES": "0.0"}, [], "REPLACING_RATES: 0.0 is not"),
        ({"STEPS": "2.5"}, [], "STEPS: 2.5 is not"),
        ({"SEEDS": "-1"}, [], "SEEDS: -1 is not"),
        ({"PYTHON": "no-such-python"}, [], "no-such-python"),
        ({}, ["--dry-run"], "unknown argument --dry-run"),
        ({}, ["--", "--output_dir", "x"], "--output_dir"),
        ({"OUTPUT_DIR": "/dev/null/runs"}, [], "OUTPUT_DIR: cannot write to /dev/null/runs"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_starts(settings, changes, args, message):
    done = sweep(settings | changes, *args)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not Path(settings["OUTPUT_DIR"]).exists()


def test_help_names_every_variable_and_its_example_is_accepted(settings, tmp_path):
    done = sweep({}, "--help")
    assert done.returncode == 0 and not done.stderr
    assert all(len(line) <= 120 for line in done.stdout.splitlines())
    for name in (*settings, "LEARNING_RATES", "REPLACING_RATES", "STEPS", "SEEDS", "PYTHON", "CUDA_VISIBLE_DEVICES"):
        assert name in done.stdout
    example = done.stdout.split("\n  GLUE_DIR=glue ")[1].split("\n\n")[0].replace("\\\n", " ")
    *assignments, _, separator, first = shlex.split("GLUE_DIR=glue " + example)[:-3]
    assert separator == "--" and first == "--num_train_epochs"
    for task in ("MRPC", "RTE"):
        write_glue(tmp_path / "glue" / task, "mrpc")
        shutil.copytree(tmp_path / "the models" / "MRPC", tmp_path / "predecessors" / task)
    listed = sweep(dict(a.split("=", 1) for a in assignments), "--list", cwd=tmp_path)
    assert len(listed.stdout.splitlines()) == 2 * 2 * 2 * 2 * 3
