"""scripts/summarize.py: its numbers against numpy, what it leaves out, and its pictures."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import summarize
from conftest import write_glue

import run_glue

SCRIPT = Path(__file__).parents[1] / "scripts" / "summarize.py"
TABLES = ["summary.csv", "summary.md"]
PICTURES = ["summary_replacing_rate.png", "summary_run.png"]
METRICS = {"mrpc": "acc_and_f1", "cola": "mcc", "mnli": "mnli/acc"}


def run_script(*args, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def score(metric: str, main: float) -> dict:
    return {"metrics": {metric: main}, "main": main, "seconds": 0.5}


def write_run(
    folder: Path, task: str, flags: str, last: float, best: float, predecessor: float | None = None, loyalty=None
) -> Path:
    """A run.json and a log.jsonl as run_glue.py writes them, of 100 steps."""
    folder.mkdir(parents=True)
    fixed = f"--task_name {task} --data_dir d --model_name_or_path m --output_dir {folder} --do_train --do_eval"
    args = run_glue.parse_args(f"{fixed} --evaluate_during_training {flags}".split())
    metric = METRICS[task]
    record = {"task": task, "main_metric": metric, "arguments": vars(args), "device": "cpu"}
    record |= {"versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "data": {"train.tsv": "0" * 64}}
    record["git_commit"] = "1234567890" * 4
    record |= {"steps": 100, "parameters": 20}
    if predecessor is not None:
        record["predecessor"] = score(metric, predecessor) | {"parameters": 40}
    record |= {"training_seconds": 9.0, "last": {"step": 100} | score(metric, last)}
    record["last"]["loyalty"] = loyalty or {}
    record["best"] = {"step": 50} | score(metric, best)
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    rate = {} if args.replacing_rate is None else {"replacing_rate": args.replacing_rate}
    lines = []
    for step, value in ((50, best), (100, last)):
        lines.append({"step": step, "loss": 5 / step, "learning_rate": 1e-5} | rate)
        lines.append({"step": step, f"eval_{metric}": value})
    del lines[2]["loss"]  # no module was drawn
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


LINEAR = "--replacing_rate 0.3 --scheduler_type linear --scheduler_linear_k 0.01 --learning_rate 2e-5 --seed"
CONSTANT = "--replacing_rate 0.5 --steps_for_replacing 60 --learning_rate 2e-5 --seed"
SEEDS = {42: (0.80, 0.84), 43: (0.82, 0.85), 44: (0.87, 0.87)}  # last and best score
PREDECESSOR = 0.9


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two tasks, three schedules; the linear one of MRPC has three seeds and one of them, 42, a second setting."""
    folder = tmp_path / "runs"
    for seed, (last, best) in SEEDS.items():
        write_run(folder / "MRPC" / f"linear-{seed}", "mrpc", f"{LINEAR} {seed}", last, best, PREDECESSOR)
    write_run(folder / "MRPC" / "long", "mrpc", f"{LINEAR} 42 --num_train_epochs 30", 0.7, 0.9, PREDECESSOR)
    write_run(folder / "MRPC" / "constant", "mrpc", f"{CONSTANT} 42", 0.81, 0.81, PREDECESSOR)
    write_run(folder / "predecessor" / "MRPC", "mrpc", "--learning_rate 3e-5", PREDECESSOR, PREDECESSOR)
    write_run(folder / "CoLA" / "constant", "cola", f"{CONSTANT} 42", 0.2, 0.3, -0.1)
    return folder


def rows_of(folder: Path) -> list[dict]:
    with open(folder / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("summary*")) + [path.name for path in folder.glob(".*")]


def test_a_setting_has_the_mean_and_deviation_of_its_seeds_and_what_it_keeps_of_the_predecessor(runs):
    done = run_script(runs, "--no_pictures")
    assert done.returncode == 0, done.stderr
    assert files_in(runs) == TABLES
    rows = rows_of(runs)
    assert [(row["task"], row["schedule"], row["num_train_epochs"], row["seeds"]) for row in rows] == [
        ("cola", "constant", "20.0", "1"),
        ("mrpc", "constant", "20.0", "1"),
        ("mrpc", "fine-tuning", "20.0", "1"),
        ("mrpc", "linear", "20.0", "3"),
        ("mrpc", "linear", "30.0", "1"),
    ]
    linear = rows[3]
    last, best = np.array(list(SEEDS.values())).T
    expected = {
        "replacing_rate": 0.3,
        "scheduler_linear_k": 0.01,
        "learning_rate": 2e-5,
        "last_mean": np.mean(last),
        "last_std": np.std(last, ddof=1),
        "best_mean": np.mean(best),
        "best_std": np.std(best, ddof=1),
        "predecessor": PREDECESSOR,
        "last_kept": 100 * np.mean(last) / PREDECESSOR,
        "best_kept": 100 * np.mean(best) / PREDECESSOR,
    }
    assert {name: float(linear[name]) for name in expected} == pytest.approx(expected)
    assert linear["steps_for_replacing"] == "" and rows[1]["scheduler_linear_k"] == ""
    assert rows[1]["steps_for_replacing"] == "60" and rows[1]["last_std"] == ""
    assert not {"warmup_steps", "seed", "output_dir", "save_steps"} & set(linear)  # alike in all, or no setting
    # Plain fine-tuning has no predecessor; of one below 0 nothing can be kept.
    assert (rows[2]["predecessor"], rows[2]["last_kept"], rows[2]["last_mean"]) == ("", "", "0.9")
    assert (rows[0]["predecessor"], rows[0]["last_kept"]) == ("-0.1", "")
    # By the last step, not the best one, and not the predecessor.
    assert [row["best_setting"] for row in rows] == ["True", "False", "False", "True", "False"]


def test_runs_on_other_data_in_the_same_place_are_another_setting(runs):
    path = runs / "MRPC" / "linear-43" / "run.json"
    path.write_text(path.read_text().replace("0" * 64, "1" * 64))
    assert run_script(runs, "--no_pictures").returncode == 0
    linear = [row for row in rows_of(runs) if row["task"] == "mrpc" and row["schedule"] == "linear"]
    assert sorted((row["seeds"], row["num_train_epochs"]) for row in linear) == [
        ("1", "20.0"),
        ("1", "30.0"),
        ("2", "20.0"),
    ]
    assert len({row["data"] for row in linear}) == 2


def test_the_summary_says_what_the_runs_were_made_with(runs):
    path = runs / "MRPC" / "long" / "run.json"
    path.write_text(
        path.read_text().replace('"2.13.0"', '"2.13.1"').replace("1234567890" * 4, "1234567890" * 4 + "-dirty")
    )
    made_with = run_script(runs, "--no_pictures").stdout.splitlines()[-1]
    one = "torch 2.13.0, transformers 5.23.0, commit 1234567890"
    assert made_with == f"Made with {one}; torch 2.13.1, transformers 5.23.0, commit 1234567890-dirty."


def test_the_markdown_table_is_printed_and_written_and_says_what_is_optimistic(runs):
    done = run_script(runs, "--no_pictures")
    assert (runs / "summary.md").read_text() == done.stdout
    table, notes = done.stdout.split("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    head, rule, *rows = lines
    assert {len(line) for line in lines} == {len(head)} and set("".join(rule)) == {"-"}
    linear = dict(zip(head, rows[3], strict=True))
    assert linear["last step"] == "**0.8300 ± 0.0361**" and linear["best step"] == "0.8533 ± 0.0153"
    assert (linear["k"], linear["learning rate"], linear["steps at the rate"]) == ("0.01", "2e-05", "-")
    assert (linear["predecessor"], linear["last kept %"], linear["best kept %"]) == ("0.9000", "92.2", "94.8")
    assert rows[1][head.index("last step")] == "0.8100 ± -"
    assert "7 runs" in notes and "optimistic" in notes and "same dev set" in notes


def test_a_run_of_run_glue_is_read(bert_folder, tmp_path):
    data = write_glue(tmp_path / "MRPC", "mrpc")
    folder = tmp_path / "runs" / "one"
    flags = "--do_train --do_eval --evaluate_during_training --max_steps 4 --logging_steps 2 --save_steps 0 --no_cuda "
    flags += "--max_seq_length 32 --replacing_rate 0.5 --scheduler_type linear --scheduler_linear_k 0.2"
    where = ["--model_name_or_path", str(bert_folder), "--data_dir", str(data), "--output_dir", str(folder)]
    run_glue.main(run_glue.parse_args(["--task_name", "MRPC", *where, *flags.split()]))
    done = run_script(folder.parent, "--output_dir", tmp_path / "summary" / "new")
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "summary" / "new")
    record = json.loads((folder / "run.json").read_text())
    for name, value in (("last_mean", "last"), ("best_mean", "best"), ("predecessor", "predecessor")):
        assert float(row[name]) == pytest.approx(record[value]["main"])
    assert (row["schedule"], row["scheduler_linear_k"], row["metric"]) == ("linear", "0.2", "acc_and_f1")
    assert not files_in(folder.parent)


def test_loyalty_is_in_the_table_where_it_was_measured(runs, tmp_path):
    assert run_script(runs, "--no_pictures").returncode == 0
    assert not {"label_loyalty", "probability_loyalty", "score_correlation"} & set(rows_of(runs)[0])
    for seed, label in ((42, 0.9), (43, 0.8)):
        flags = f"{LINEAR} {seed} --model_name_or_path predecessor-seed{seed}"
        loyalty = {"mnli/label_loyalty": label, "mnli/probability_loyalty": 0.7, "mnli-mm/label_loyalty": 0.1}
        write_run(runs / "MNLI" / f"{seed}", "mnli", flags, 0.8, 0.8, 0.9, loyalty)
    done = run_script(runs, "--no_pictures")
    (row,) = [row for row in rows_of(runs) if row["task"] == "mnli"]
    assert (float(row["label_loyalty"]), float(row["probability_loyalty"])) == (pytest.approx(0.85), 0.7)
    # A predecessor for each seed is still one setting.
    assert row["seeds"] == "2" and "score_correlation" not in row
    assert "| label loyalty | probability loyalty |" in done.stdout and "Jensen-Shannon" in done.stdout


# ------------------------------------------------------------------------------- damaged, doubled


def test_a_damaged_run_is_named_and_left_out(runs):
    for name, text in (("half", '{"task": "mrpc"'), ("other", '{"task": "mrpc"}'), ("list", "[]")):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(text)
    done = run_script(runs, "--no_pictures")
    assert done.returncode == 0 and "7 runs" in done.stdout
    *warnings, written = done.stderr.splitlines()
    assert written.startswith("Written to")
    assert len(warnings) == 3
    for name, warning in zip(("half", "list", "other"), warnings, strict=True):
        assert f"{runs / name / 'run.json'} is no run.json" in warning


def test_a_seed_that_is_there_twice_counts_once(runs):
    write_run(runs / "MRPC" / "linear-42-copy", "mrpc", f"{LINEAR} 42", 0.1, 0.1, PREDECESSOR)
    done = run_script(runs, "--no_pictures")
    assert f"{runs / 'MRPC' / 'linear-42-copy'} has the setting and the seed of" in done.stderr
    assert rows_of(runs)[3]["seeds"] == "3" and "7 runs" in done.stdout
    assert float(rows_of(runs)[3]["last_mean"]) == pytest.approx(np.mean([last for last, _ in SEEDS.values()]))


def test_a_score_that_is_no_number_is_never_the_best(runs):
    write_run(runs / "MRPC" / "diverged", "mrpc", f"{LINEAR} 42 --warmup_steps 5", float("nan"), 0.5, PREDECESSOR)
    done = run_script(runs, "--no_pictures")
    (diverged,) = [row for row in rows_of(runs) if row["warmup_steps"] == "5"]
    assert done.returncode == 0 and (diverged["last_mean"], diverged["best_setting"]) == ("nan", "False")
    assert [row["best_setting"] for row in rows_of(runs)].count("True") == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{empty}"], "no run.json"),
        (["{empty}/nowhere"], "no run.json"),
        (["{runs}", "--run", "{empty}"], "run.json"),
        (["{runs}", "--run", "{runs}/MRPC/long", "--no_pictures"], "--no_pictures"),
        (["{runs}", "--output_dir", "{runs}/MRPC/long/run.json"], "run.json"),
        (["{runs}", "--picture"], "--picture"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(runs, tmp_path, args, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_script(*(arg.format(empty=empty, runs=runs) for arg in args))
    assert done.returncode != 0 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not files_in(runs) and not list(empty.iterdir())


# -------------------------------------------------------------------------------------- pictures


def test_without_matplotlib_the_tables_are_made_and_the_user_is_told(runs, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError\n")
    done = run_script(runs, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and files_in(runs) == TABLES
    assert "pip install matplotlib" in done.stderr and len(done.stderr.splitlines()) == 2


def test_both_pictures_are_written_beside_the_tables(runs):
    pytest.importorskip("matplotlib")
    done = run_script(runs, "--run", runs / "MRPC" / "long")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1, done.stderr
    assert files_in(runs) == TABLES + PICTURES
    for name in PICTURES:
        assert (runs / name).read_bytes().startswith(b"\x89PNG")


def test_fine_tuning_alone_and_a_damaged_log_leave_their_picture_out(runs, tmp_path):
    pytest.importorskip("matplotlib")
    (runs / "predecessor" / "MRPC" / "log.jsonl").write_text('{"step": 50, "lo')
    done = run_script(runs / "predecessor", "--output_dir", tmp_path / "out")
    assert done.returncode == 0 and files_in(tmp_path / "out") == TABLES
    assert len(done.stderr.splitlines()) == 3 and all(name in done.stderr for name in PICTURES)


@pytest.fixture
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_the_picture_of_rates_shows_each_rate_s_best_setting_and_the_predecessor(runs, plt):
    write_run(runs / "MRPC" / "low-rate", "mrpc", f"{LINEAR} 42 --replacing_rate 0.1", 0.6, 0.6, PREDECESSOR)
    figure = summarize.draw_replacing_rates(plt, summarize.group(summarize.read_runs(runs)))
    cola, mrpc = figure.axes
    assert (cola.get_title(), mrpc.get_title()) == ("cola", "mrpc")
    assert mrpc.get_ylabel() == "dev acc_and_f1, last step" and "replacing rate" in mrpc.get_xlabel()
    linear, constant = mrpc.containers
    last = [value for value, _ in SEEDS.values()]
    assert linear[0].get_xdata() == pytest.approx([0.1, 0.3])
    assert linear[0].get_ydata() == pytest.approx([0.6, np.mean(last)])
    (low, high) = linear[2][0].get_segments()[-1][:, 1]
    assert (high - low) / 2 == pytest.approx(np.std(last, ddof=1))
    assert (constant[0].get_xdata(), constant[0].get_ydata()) == (pytest.approx([0.5]), pytest.approx([0.81]))
    assert list(mrpc.lines[-1].get_ydata()) == pytest.approx([PREDECESSOR] * 2)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["linear schedule", "constant schedule", "predecessor"]


def test_the_picture_of_a_run_shows_what_its_log_says(runs, plt):
    run = summarize.read_run(runs / "MRPC" / "long" / "run.json")
    figure = summarize.draw_run(plt, run)
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["training loss", "replacing rate", "dev acc_and_f1"]
    loss, rate, dev = (axis.lines[0] for axis in figure.axes)
    assert (list(loss.get_xdata()), list(loss.get_ydata())) == ([50], [0.1])  # the second line has none
    assert (list(rate.get_xdata()), list(rate.get_ydata())) == ([50, 100], [0.3, 0.3])
    assert list(dev.get_ydata()) == [0.9, 0.7]
    marked = {line.get_label(): line.get_ydata()[0] for line in figure.axes[2].lines[1:]}
    assert marked == {"predecessor": PREDECESSOR, "best step": 0.9}
    assert figure.axes[2].get_xlabel() == "optimiser step"
    # Plain fine-tuning has no replacing rate.
    run = summarize.read_run(runs / "predecessor" / "MRPC" / "run.json")
    assert len(summarize.draw_run(plt, run).axes) == 2
