"""scripts/reproduce.sh: which runs the grid is made of, that none is made twice, and that it can be stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ablate
import pytest
import report
import reproduce
from conftest import save_bert, write_glue

import run_glue

ROOT = Path(__file__).parents[1]
LADDER = "5e-4 1e-3 2e-3 4e-3"


def flags(folder: Path, *more: str) -> list[str]:
    fixed = ["--model", folder / "model", "--glue_dir", folder, "--output_dir", folder / "out", "--seeds", "1 2"]
    fixed += ["--tasks", "sts-b", "--learning_rates", LADDER, "--num_train_epochs", 1, "--batch_size", 4]
    return [str(word) for word in [*fixed, *more, "--", "--no_cuda"]]


def write_record(args, grid: reproduce.Grid, run: reproduce.Run, main: float) -> None:
    """A record as run_glue.py or ablate.py would leave it; of a predecessor also a model."""
    _, script, *words = grid.command(run)
    parse = ablate.parse_args if script.endswith("ablate.py") else run_glue.parse_args
    score = {"metrics": {"pearson": main, "spearmanr": main, "corr": main}, "main": main, "seconds": 0.1}
    record = {"task": "sts-b", "main_metric": "corr", "arguments": vars(parse(words)), "steps": grid.n_steps["STS-B"]}
    record |= {"training_seconds": 1.0, "versions": {}, "last": score | {"loyalty": {"score_correlation": main}}}
    if run.method == "predecessor":
        save_bert(args.output_dir / "runs" / run.folder, num_labels=1, max_position_embeddings=128)
    else:
        record["predecessor"] = score | {"main": 0.9, "metrics": dict.fromkeys(score["metrics"], 0.9)}
    target = args.output_dir / "results" / run.folder
    target.mkdir(parents=True, exist_ok=True)
    (target / "run.json").write_text(json.dumps(record))


def main_score(run: reproduce.Run) -> float:
    """The method's best rate and share differ: predecessors' is the lowest, the linear schedule's the highest."""
    best = {"predecessor": 5e-4, "linear": 4e-3}.get(run.method, 1e-3)
    share = 0 if run.by is None else 0.01 * (run.by == 0.25)
    return 0.8 - 10 * abs(float(run.learning_rate) - best) + share + 0.001 * run.seed


@pytest.fixture
def made(tmp_path):
    """(args, stages) of a grid all of whose runs have records."""
    write_glue(tmp_path / "STS-B", "sts-b", n_train=16, n_dev=8)
    save_bert(tmp_path / "model", num_labels=1, max_position_embeddings=128)
    args = reproduce.parse_args(flags(tmp_path))
    grid, stages = reproduce.Grid(args), []
    for name, runs in grid.stages():
        stages.append((name, runs))
        for run in runs:
            if not reproduce.is_done(args, run):
                write_record(args, grid, run, main_score(run))
    return args, stages


def test_the_search_goes_on_until_the_best_rate_lies_between_others(made):
    _, stages = made
    tried = {}
    for name, runs in stages:
        for run in runs:
            if name.startswith("search: learning"):
                tried.setdefault(run.method, []).append(run.learning_rate)
    assert tried["predecessor"] == ["1e-3", "2e-3", "5e-4"]  # at the ladder's end
    assert tried["linear"] == ["1e-3", "2e-3", "4e-3"]
    assert tried["frozen"] == ["1e-3", "2e-3", "5e-4"]
    assert {run.seed for name, runs in stages if name.startswith("search") for run in runs} == {1}

    last = dict(stages)
    assert {(run.method, run.learning_rate, run.by) for run in last["comparison"]} == {
        ("pretrained-layers", "1e-3", None),
        ("all-trained", "1e-3", None),
        ("frozen", "1e-3", None),
        ("constant", "1e-3", 0.25),
        ("linear", "4e-3", 0.25),
    }
    assert {run.seed for run in last["comparison"]} == {1, 2}
    assert {(run.method, run.learning_rate, run.by) for run in last["variants"]} == {
        (method, "4e-3", 0.25) for method in report.ABLATIONS
    }
    rates = [run.rate for run in last["constant rates"] if run.seed == 2]
    assert rates == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, None]  # a rate of 1 is the frozen method


def test_every_command_is_of_the_same_epochs_and_batches_and_starts_from_its_seed_s_predecessor(made):
    args, stages = made
    grid = reproduce.Grid(args)
    for run in {run for _, runs in stages for run in runs}:
        words = grid.command(run)
        script = words[1].removeprefix("scripts/")
        parsed = (ablate if script == "ablate.py" else run_glue).parse_args(words[2:])
        assert (parsed.num_train_epochs, parsed.per_gpu_train_batch_size, parsed.seed) == (1, 4, run.seed)
        assert parsed.learning_rate == float(run.learning_rate)
        source = f"predecessor/lr5e-4-seed{run.seed}"
        assert parsed.model_name_or_path.endswith("/model" if run.method == "predecessor" else source)
        record = report.as_record(report.summarize.read_run(args.output_dir / "results" / run.folder / "run.json"))
        assert record[:6] == ("STS-B", run.method, run.seed, parsed.learning_rate, run.by, run.rate)


def test_only_what_is_missing_is_run_and_the_report_ends_it(made):
    args, stages = made
    records = args.output_dir / "results" / "STS-B"
    missing = [
        records / "linear" / "lr4e-3-by0.25-seed2" / "run.json",
        records / "falling" / "lr4e-3-by0.25-seed2" / "run.json",
    ]
    for path in missing:
        path.unlink()
    command = [sys.executable, "scripts/reproduce.py", *flags(args.glue_dir)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    runs = {run for _, runs in stages for run in runs}
    assert f"{len(runs)} runs, {len(runs) - 2} of them done; the others take about 0.0 hours" in done.stdout
    assert "1 of 1: STS-B/linear/lr4e-3-by0.25-seed2: corr " in done.stdout
    for path in missing:
        record = json.loads(path.read_text())
        assert record["steps"] == 4 and "score_correlation" in record["last"]["loyalty"]
        assert not (args.output_dir / "runs" / path.parent.relative_to(args.output_dir / "results")).exists()
    document = (args.output_dir / "results.md").read_text()
    assert document in done.stdout and "| Theseus, linear from 0.3" in document
    assert (args.output_dir / "results_rates.png").read_bytes().startswith(b"\x89PNG")

    # Of the predecessors, those that others start from are left.
    kept = sorted(path.name for path in (args.output_dir / "runs" / "STS-B" / "predecessor").iterdir())
    assert kept == ["lr5e-4-seed1", "lr5e-4-seed2"]

    # Another grid in the same place is refused, as are names that there are not.
    for others, status, message in (
        (["--batch_size", "8"], 1, "holds other runs: batch_size was 4, is 8"),
        (["--tasks", "sst"], 2, "--tasks"),
        (["--rate_task", "mrpc"], 2, "does not name MRPC"),
        (["--tasks", "ax"], 2, "--tasks"),
        (["--seeds", "one"], 2, "--seeds"),
        (["--learning_rates", "1e-3 2e-3"], 1, "0.0005 has been searched"),
    ):
        command = [sys.executable, "scripts/reproduce.py", *flags(args.glue_dir, *others)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == status and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_signal_stops_the_runs_and_the_same_command_goes_on(made):
    args, _ = made
    path = args.output_dir / "results" / "STS-B" / "linear" / "lr4e-3-by0.25-seed2" / "run.json"
    path.unlink()
    (args.output_dir / "step_seconds.json").write_text('{"STS-B": 0.1}')  # nothing is timed
    command = [sys.executable, "scripts/reproduce.py", *flags(args.glue_dir)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = args.output_dir / "runs" / "STS-B" / "linear" / "lr4e-3-by0.25-seed2.log"
    while not log.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err == "reproduce.sh: stopped; the same command goes on\n" and "stopped after" in out
    assert not path.exists()

    # It goes on, past a run that fails, and the others' results are told all the same.
    failing = "predecessor/lr2e-3-seed1"
    (args.output_dir / "results" / "STS-B" / failing / "run.json").unlink()
    folder = args.output_dir / "runs" / "STS-B" / failing
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "1 runs failed" in done.stderr.splitlines()[-1]
    assert f"STS-B/{failing}: failed: " in done.stdout and path.exists()
    assert (args.output_dir / "results.md").exists()


def test_flags_that_the_grid_sets_are_refused_and_some_may_change(tmp_path):
    for word in ("--max_steps", "--seed=3", "--gradient_accumulation_steps"):
        with pytest.raises(SystemExit):
            reproduce.parse_args([*flags(tmp_path), word, "1"])
    assert reproduce.lasting("--bf16 --save_steps 5 --max_grad_norm 2 --save_total_limit=1".split()) == [
        "--bf16",
        "--max_grad_norm",
        "2",
    ]


def test_the_shell_script_explains_itself_and_refuses_in_one_line(tmp_path):
    script = ROOT / "scripts" / "reproduce.sh"
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "GLUE_DIR" in done.stdout and "--dry_run" in done.stdout
    for words, message in ((["--model"], "--model needs a value"), (["--seed=1"], "unknown argument --seed")):
        done = subprocess.run([script, *words], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith(f"reproduce.sh: error: {message}")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_whole_grid_from_nothing(tmp_path):
    write_glue(tmp_path / "MRPC", "mrpc")
    save_bert(tmp_path / "model", max_position_embeddings=128)
    command = [sys.executable, "scripts/reproduce.py", *flags(tmp_path, "--tasks", "mrpc")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    document = (tmp_path / "out" / "results.md").read_text()
    tables = [line for line in document.splitlines() if line.startswith("|")]
    assert len(tables) > 50 and not [line for line in tables if line.count("| - ") > 3]
    # Of the predecessors that were tried those are left that others start from, one a seed.
    left = [path.name for path in (tmp_path / "out" / "runs" / "MRPC" / "predecessor").iterdir()]
    assert sorted(name.rpartition("-")[2] for name in left) == ["seed1", "seed2"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert again.stdout.endswith(document) and ": 0 of " in again.stdout
