"""scripts/summarize.py: its numbers against numpy, what it leaves out, its pictures, and what the documents tell."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import summarize
from conftest import save_bert, write_glue
from grid.records import read_run, read_runs

import run_glue

ROOT = Path(__file__).parents[1]
METRICS = {"mrpc": "acc_and_f1", "cola": "mcc", "mnli": "mnli/acc", "sts-b": "corr"}


def main(*args) -> None:
    sys.argv = ["summarize.py", *map(str, args)]
    summarize.main()


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])


def write_run(folder: Path, task: str, flags: str, predecessor: float | None = None, **values) -> Path:
    """A run.json and a log.jsonl as run_glue.py writes them, of 100 steps; `values` are the scores and the loyalty."""
    folder.mkdir(parents=True)
    fixed = f"--task_name {task} --data_dir d --model_name_or_path m --output_dir {folder} --do_train --do_eval"
    args = run_glue.parse_args(f"{fixed} --evaluate_during_training {flags}".split())
    metric = METRICS[task]
    record = {"task": task, "main_metric": metric, "arguments": vars(args), "steps": 100, "training_seconds": 9.0}
    record |= {"versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "data": {"train.tsv": values.get("data")}}
    record["git_commit"] = "1234567890" * 4 + "-dirty"
    scores = {"last": values["last"], "best": values.get("best", values["last"]), "predecessor": predecessor}
    for name, score in scores.items():
        if score is not None:
            record[name] = {"metrics": {metric: score}, "main": score}
    record["last"]["loyalty"] = values.get("loyalty", {})
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": 50, "loss": 0.1, "learning_rate": 1e-5}, {"step": 50, f"eval_{metric}": scores["best"]}]
    lines += [{"step": 100, "learning_rate": 1e-6}, {"step": 100, f"eval_{metric}": scores["last"]}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


LINEAR = "--replacing_rate 0.3 --scheduler_type linear --scheduler_linear_k 0.01 --learning_rate 2e-5 --seed"
CONSTANT = "--replacing_rate 0.5 --steps_for_replacing 60 --learning_rate 2e-5 --seed"
SEEDS = {42: (0.80, 0.84), 43: (0.82, 0.85), 44: (0.87, 0.87)}  # last and best score


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two tasks, three schedules; the linear one of MRPC has three seeds and one of them, 42, a second setting."""
    folder = tmp_path / "runs"
    for seed, (last, best) in SEEDS.items():
        write_run(folder / "MRPC" / f"linear-{seed}", "mrpc", f"{LINEAR} {seed}", 0.9, last=last, best=best)
    write_run(folder / "MRPC" / "long", "mrpc", f"{LINEAR} 42 --num_train_epochs 30", 0.9, last=0.7, best=0.9)
    write_run(folder / "MRPC" / "constant", "mrpc", f"{CONSTANT} 42", 0.9, last=0.81)
    write_run(folder / "predecessor" / "MRPC", "mrpc", "--learning_rate 3e-5", last=0.9)
    write_run(folder / "CoLA" / "constant", "cola", f"{CONSTANT} 42", -0.1, last=0.2, best=0.3)
    return folder


def rows_of(folder: Path) -> list[dict]:
    with open(folder / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def cells_of(table: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines}


# ------------------------------------------------------------------------------------------- a sweep


def test_of_variants_alone_no_picture_of_replacing_rates_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    record = write_run(tmp_path / "runs/anti", "mrpc", f"{LINEAR} 1", 0.9, last=0.8) / "run.json"
    found = json.loads(record.read_text())
    record.write_text(json.dumps(found | {"arguments": found["arguments"] | {"variant": "anti-curriculum"}}))
    main(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").glob("summary_replacing*.png")] == []


def test_a_setting_has_the_mean_and_deviation_of_its_seeds_and_what_it_keeps_of_the_predecessor(runs, capsys):
    main(runs)
    rows = rows_of(runs)
    assert [(row["task"], row["schedule"], row["num_train_epochs"], row["seeds"]) for row in rows] == [
        ("cola", "constant", "20.0", "1"),
        ("mrpc", "constant", "20.0", "1"),
        ("mrpc", "fine-tuning", "20.0", "1"),
        ("mrpc", "linear", "20.0", "3"),
        ("mrpc", "linear", "30.0", "1"),
    ]
    last, best = np.array(list(SEEDS.values())).T
    expected = {"replacing_rate": 0.3, "scheduler_linear_k": 0.01, "learning_rate": 2e-5, "predecessor": 0.9}
    expected |= {"last_mean": np.mean(last), "last_std": np.std(last, ddof=1), "last_kept": 100 * np.mean(last) / 0.9}
    expected |= {"best_mean": np.mean(best), "best_std": np.std(best, ddof=1), "best_kept": 100 * np.mean(best) / 0.9}
    assert {name: float(rows[3][name]) for name in expected} == pytest.approx(expected)
    assert rows[1]["steps_for_replacing"] == "60" and rows[1]["last_std"] == ""
    assert not {"warmup_steps", "seed", "output_dir", "label_loyalty"} & set(rows[0])  # alike in all, or no setting
    # Plain fine-tuning has no predecessor; of one below 0 nothing can be kept.
    assert (rows[2]["predecessor"], rows[2]["last_kept"], rows[2]["last_mean"]) == ("", "", "0.9")
    assert (rows[0]["predecessor"], rows[0]["last_kept"]) == ("-0.1", "")
    # By the last step, not the best one, and not the predecessor.
    assert [row["best_setting"] for row in rows] == ["yes", "", "", "yes", ""]

    printed = capsys.readouterr().out
    assert (runs / "summary.md").read_text() == printed
    table, notes = printed.split("\n\n")
    assert "| 0.83 " in table.splitlines()[5] and "| 0.03606 " in table.splitlines()[5]
    assert "7 runs" in notes and "optimistic" in notes
    assert notes.endswith("Made with torch 2.13.0, transformers 5.23.0, commit 1234567890-dirty.\n")


def test_other_data_are_another_setting_and_a_predecessor_for_each_seed_is_none(runs):
    write_run(runs / "data", "mrpc", f"{LINEAR} 45", 0.9, last=0.1, data="other")
    for seed in (1, 2):
        write_run(runs / f"{seed}", "cola", f"{CONSTANT} {seed} --model_name_or_path m-seed{seed}", 0.5, last=0.4)
    seeds = [[run.seed for run in setting] for setting in summarize.group(read_runs(runs))]
    assert [1, 2] in seeds and [45] in seeds and [42, 43, 44] in seeds


def test_a_schedule_that_is_new_names_itself_and_has_a_curve_of_its_own(runs, plotted):
    path = write_run(runs / "new", "mrpc", f"{LINEAR} 42", 0.9, last=0.85) / "run.json"
    path.write_text(path.read_text().replace('"linear"', '"cosine"'))
    settings = summarize.group(read_runs(runs))
    assert [s[0].schedule for s in settings if s[0].task == "mrpc"] == ["constant", "cosine", "fine-tuning"] + 2 * [
        "linear"
    ]
    _, axis = plotted(summarize.draw_replacing_rates, settings).axes
    assert [line.get_label() for line in axis.containers] == ["constant schedule", "cosine schedule", "linear schedule"]


def test_scores_and_loyalty_of_mnli_are_the_means_of_its_two_dev_sets(tmp_path):
    loyalty = {"mnli/label_loyalty": 0.9, "mnli-mm/label_loyalty": 0.7}
    path = write_run(tmp_path / "run", "mnli", f"{LINEAR} 1", 0.9, last=0.8, loyalty=loyalty) / "run.json"
    record = json.loads(path.read_text())
    record["last"]["metrics"]["mnli-mm/acc"] = 0.7
    path.write_text(json.dumps(record))
    run = read_run(path)
    assert run.scores == {"last": pytest.approx(0.75), "best": 0.8, "predecessor": 0.9}
    assert run.loyalty == {"label_loyalty": pytest.approx(0.8)}


def test_a_run_of_run_glue_is_read(tmp_path):
    flags = "--task_name MRPC --do_train --do_eval --evaluate_during_training --max_steps 4 --logging_steps 2 "
    flags += "--save_steps 0 --no_cuda --max_seq_length 32 --replacing_rate 0.5 --steps_for_replacing 2"
    where = ["--model_name_or_path", save_bert(tmp_path / "model"), "--data_dir", write_glue(tmp_path / "data", "mrpc")]
    where += ["--output_dir", tmp_path / "runs" / "one"]
    run_glue.main(run_glue.parse_args([*map(str, where), *flags.split()]))
    main(tmp_path / "runs", "--output_dir", tmp_path / "summary" / "new")
    (row,) = rows_of(tmp_path / "summary" / "new")
    record = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())
    for column, name in (("last_mean", "last"), ("best_mean", "best"), ("predecessor", "predecessor")):
        assert float(row[column]) == pytest.approx(record[name]["main"])
    assert float(row["label_loyalty"]) == pytest.approx(record["last"]["loyalty"]["label_loyalty"])
    assert (row["schedule"], row["steps_for_replacing"], row["metric"]) == ("constant", "2", "acc_and_f1")
    assert not list((tmp_path / "runs").glob("summary*"))


def test_damaged_and_unfinished_runs_and_copies_are_named_and_left_out(runs, capsys):
    for name, text in (("half", '{"task": "mrpc"'), ("other", '{"task": "mrpc"}')):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(text)
    (runs / "other" / "unfinished_run.json").write_text("{}")
    write_run(runs / "MRPC" / "linear-42-copy", "mrpc", f"{LINEAR} 42", 0.9, last=0.1)
    write_run(runs / "diverged", "mrpc", f"{LINEAR} 42 --warmup_steps 5", 0.9, last=float("nan"))
    main(runs)
    out, err = capsys.readouterr()
    half, other, unfinished, copy, written = err.splitlines()
    assert f"{runs / 'half' / 'run.json'} is no record of a run" in half and "'arguments'" in other
    assert "not finished" in unfinished and f"{runs / 'MRPC' / 'linear-42-copy'} has the setting" in copy
    assert written.startswith("summarize.py: warning: no pictures") or written.startswith("Written to")
    rows = rows_of(runs)
    assert "8 runs" in out and max(row["seeds"] for row in rows) == "3"
    (diverged,) = [row for row in rows if row["warmup_steps"] == "5"]
    assert (diverged["last_mean"], diverged["best_setting"]) == ("", "")  # a score that is no number is never the best


@pytest.mark.parametrize("args", [["{folder}"], ["{folder}", "--output_dir", "{folder}/new"]])
def test_where_there_is_nothing_one_line_says_so(tmp_path, args):
    with pytest.raises(SystemExit, match="no run\\.json") as stop:
        main(*(arg.format(folder=tmp_path) for arg in args))
    assert len(str(stop.value).splitlines()) == 1 and not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------- pictures


@pytest.fixture
def plotted():
    """Makes the figure of a function that draws."""
    figures = pytest.importorskip("matplotlib.figure")

    def plot(draw, what):
        figure = figures.Figure(layout="constrained")
        draw(what, figure)
        return figure

    return plot


def test_without_matplotlib_the_tables_are_made_and_one_line_says_so(runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main(runs)
    warning, written = capsys.readouterr().err.splitlines()
    assert "pip install matplotlib" in warning and written.endswith("summary.md, summary.csv")


def test_the_pictures_are_written_beside_the_tables(runs):
    pytest.importorskip("matplotlib")
    main(runs, "--run", runs / "MRPC" / "long")
    for name in ("summary_replacing_rate.png", "summary_run.png"):
        assert (runs / name).read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_rates_shows_each_rate_s_best_setting_and_the_predecessor(runs, plotted):
    write_run(runs / "MRPC" / "low-rate", "mrpc", f"{LINEAR} 42 --replacing_rate 0.1", 0.9, last=0.6)
    cola, mrpc = plotted(summarize.draw_replacing_rates, summarize.group(read_runs(runs))).axes
    assert (cola.get_title(), mrpc.get_title()) == ("CoLA", "MRPC")
    assert mrpc.get_ylabel() == "mean of accuracy and F1, %" and "replacing rate" in mrpc.get_xlabel()
    constant, linear = mrpc.containers
    last = [100 * value for value, _ in SEEDS.values()]
    assert linear[0].get_xdata() == pytest.approx([0.1, 0.3])
    assert linear[0].get_ydata() == pytest.approx([60, np.mean(last)])
    (low, high) = linear[2][0].get_segments()[-1][:, 1]
    assert (high - low) / 2 == pytest.approx(np.std(last, ddof=1))
    assert (constant[0].get_xdata(), constant[0].get_ydata()) == (pytest.approx([0.5]), pytest.approx([81]))
    assert list(mrpc.lines[-1].get_ydata()) == pytest.approx([90, 90])


def test_the_picture_of_a_run_has_a_panel_for_each_dev_set_each_with_the_predecessor_on_it(runs, plotted, tmp_path):
    folder = write_run(tmp_path / "MNLI", "mrpc", f"{CONSTANT} 42", 0.9, last=0.6)
    record = json.loads((folder / "run.json").read_text())
    metrics = {"mnli/acc": 0.8, "mnli-mm/acc": 0.7}
    record |= {"main_metric": "mnli/acc", **{name: {"metrics": metrics} for name in ("last", "best", "predecessor")}}
    (folder / "run.json").write_text(json.dumps(record))
    line = {"step": 50, "eval_mnli/acc": 0.5, "eval_mnli-mm/acc": 0.4, "eval_mnli/not_acc": 0.3}
    (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    axes = plotted(summarize.draw_run, read_run(folder / "run.json")).axes
    assert [axis.get_ylabel() for axis in axes] == ["dev mnli/acc", "dev mnli-mm/acc"]
    assert [[line.get_ydata()[0] for line in axis.lines] for axis in axes] == [[0.5, 0.8], [0.4, 0.7]]


def test_the_picture_of_a_run_shows_what_its_log_says(runs, plotted):
    axes = plotted(summarize.draw_run, read_run(runs / "MRPC" / "long" / "run.json")).axes
    assert [axis.get_ylabel() for axis in axes] == ["loss", "dev acc and f1"]
    loss, dev = (axis.lines[0] for axis in axes)
    assert (list(loss.get_xdata()), list(loss.get_ydata())) == ([50], [0.1])  # the second line has none
    assert (list(dev.get_xdata()), list(dev.get_ydata())) == ([50, 100], [0.9, 0.7])
    assert [(line.get_label(), line.get_ydata()[0]) for line in axes[1].lines[1:]] == [("predecessor", 0.9)]
