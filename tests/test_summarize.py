"""scripts/summarize.py: its numbers against numpy, what it leaves out, its pictures, and what the documents tell."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import summarize
from conftest import save_bert, write_glue
from summarize import Cell, Results

import run_glue

ROOT = Path(__file__).parents[1]
METRICS = {"mrpc": "acc_and_f1", "cola": "mcc", "mnli": "mnli/acc"}


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
    seeds = [[run.seed for run in setting] for setting in summarize.group(summarize.read_runs(runs))]
    assert [1, 2] in seeds and [45] in seeds and [42, 43, 44] in seeds


def test_a_schedule_that_is_new_names_itself_and_has_a_curve_of_its_own(runs, plotted):
    path = write_run(runs / "new", "mrpc", f"{LINEAR} 42", 0.9, last=0.85) / "run.json"
    path.write_text(path.read_text().replace('"linear"', '"cosine"'))
    settings = summarize.group(summarize.read_runs(runs))
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
    run = summarize.read_run(path)
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


# ------------------------------------------------------------------------------------------- the grid

LINEAR_SETTINGS = {"CoLA": "lr1e-4-by0.25", "MRPC": "lr2e-4-by0.25", "STS-B": "lr2e-4-by0.5"}  # the best ones


@pytest.fixture(scope="module")
def results() -> Results:
    return summarize.read_results(ROOT / "results")


def recorded(cell: str, which: str = "last") -> np.ndarray:
    """The scores of all seeds of a cell of the grid, in per cent, as their records have them."""
    paths = [ROOT / "results" / f"{cell}-seed{seed}" / "run.json" for seed in (42, 43, 44)]
    return 100 * np.array([json.loads(path.read_text())[which]["main"] for path in paths])


def shown(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


@pytest.mark.parametrize("rate", [None, 0.5])
def test_a_folder_tells_its_cell(tmp_path, rate):
    cell = Cell("STS-B", "constant" if rate else "predecessor", 43, "1e-4", rate and 0.25, rate)
    assert Cell.at(tmp_path / cell.folder) == cell
    with pytest.raises(summarize.UserError, match="no folder of"):
        Cell.at(tmp_path / "STS-B" / "constant" / "mine")


def test_the_comparison_has_what_is_kept_of_the_mean_as_in_the_paper_and_the_mean_of_what_is_kept(results):
    rows = cells_of(summarize.comparison(results))
    cells = [f"{task}/linear/{setting}" for task, setting in LINEAR_SETTINGS.items()]
    ours = np.array([recorded(cell) for cell in cells])
    theirs = np.array([recorded(cell, "predecessor") for cell in cells])
    expected = [*map(shown, ours), shown(ours.mean(0)), shown(100 * ours.mean(0) / theirs.mean(0))]
    assert rows["Theseus, linear"] == [*expected, shown((100 * ours / theirs).mean(0))]
    assert rows["predecessor"] == [*map(shown, theirs), shown(theirs.mean(0)), "-", "-"]


def test_differences_are_in_standard_deviations_within_the_methods(results):
    a, b, falling = (
        recorded(f"STS-B/{cell}") for cell in ("linear/lr2e-4-by0.5", "all-trained/lr2e-4", "falling/lr2e-4-by0.5")
    )

    def difference(a, b):
        sd = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        return f"{a.mean() - b.mean():+.1f} ({(a.mean() - b.mean()) / sd:+.1f} sd)"

    rows = cells_of(summarize.differences(results))
    assert rows["Theseus, linear less predecessor, cut and fine-tuned"][2] == difference(a, b)
    rows = cells_of(summarize.variants(results))
    assert rows["falling rate"] == ["-", "-", "-", "-", shown(falling), difference(falling, a)]
    assert rows["Theseus, linear"][4:] == [shown(a), ""]


def test_every_run_of_the_search_is_shown_and_the_chosen_one_is_bold(results):
    rows = cells_of(summarize.search(results))
    assert rows["Theseus, linear, from 0.3, 1 after 0.25"][:4] == ["-", "**22.1**", "-", "-"]
    assert rows["predecessor"][:4] == ["**26.9**", "20.6", "10.4", "-"]
    assert rows["Theseus, constant rate 0.5, 1 after 0.5"][10] == "**83.6**"  # not the 84 of another rate


def test_constant_rates_are_compared_on_the_seeds_that_all_of_them_have(results):
    fewer = {cell: run for cell, run in results.runs.items() if (cell.rate, cell.seed) != (0.9, 44)}
    rows = cells_of(summarize.rates(Results(fewer, {})))
    assert rows["0.1"] == [shown(recorded("STS-B/constant/rate0.1-lr2e-4-by0.5")[:2]), "42 43"]
    assert rows["1"] == [shown(recorded("STS-B/frozen/lr2e-4")[:2]), "42 43"]


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_a_document_tells_what_the_records_in_results_give(name):
    text = (ROOT / name).read_text()
    assert summarize.filled(text, summarize.read_results(ROOT / "results")) == text
    assert re.findall(r"<!-- ([a-z-]+) -->", text)
    for picture in re.findall(r"!\[.*?\]\((\S+)\)", text):
        assert ((ROOT / name).parent / picture).exists()


def test_a_new_document_has_every_table_and_is_the_same_when_filled_again(results, tmp_path):
    text = summarize.fill_in(tmp_path / "results.md", results)
    found = {name: text.count(f"<!-- {name} -->\n|") for name in summarize.TABLES}
    assert found == dict.fromkeys(summarize.TABLES, 1) | {"grid": 0, "held-out": 0}  # a sentence; no run was scored so
    assert summarize.fill_in(tmp_path / "results.md", results) == text == (tmp_path / "results.md").read_text()


def test_of_methods_that_were_left_out_nothing_is_told(results, tmp_path):
    runs = {cell: run for cell, run in results.runs.items() if cell.method in ("predecessor", "all-trained")}
    text = summarize.fill_in(tmp_path / "results.md", Results(runs, {}))
    assert "predecessor, cut and fine-tuned" in text and "Theseus" not in text and "results_rates.png" not in text
    assert [path.name for path in tmp_path.glob("*.png")] == ["results_comparison.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{folder}"], "no run.json"),
        (["{folder}", "--fill", "{folder}/new.md"], "no run.json"),
        ([str(ROOT / "results"), "--fill", "{folder}/document.md"], "there is no table nothing"),
        (["{folder}", "--fill", "{folder}/new.md", "--run", "x"], "--run are for a sweep"),
    ],
)
def test_mistakes_are_told_in_one_line_and_change_nothing(tmp_path, capsys, args, message):
    document = tmp_path / "document.md"
    document.write_text("<!-- nothing -->\n<!-- /nothing -->\n")
    with pytest.raises(SystemExit) as stop:
        main(*(arg.format(folder=tmp_path) for arg in args))
    told = capsys.readouterr().err or str(stop.value)
    assert message in told and len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [document] and document.read_text().startswith("<!-- nothing -->")


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


def test_the_pictures_are_written_beside_the_tables_and_the_document(runs, results, tmp_path):
    pytest.importorskip("matplotlib")
    main(runs, "--run", runs / "MRPC" / "long")
    summarize.fill_in(tmp_path / "results.md", results)
    pictures = [runs / "summary_replacing_rate.png", runs / "summary_run.png"]
    for picture in [*pictures, *(tmp_path / name for name in summarize.pictures(results))]:
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_rates_shows_each_rate_s_best_setting_and_the_predecessor(runs, plotted):
    write_run(runs / "MRPC" / "low-rate", "mrpc", f"{LINEAR} 42 --replacing_rate 0.1", 0.9, last=0.6)
    cola, mrpc = plotted(summarize.draw_replacing_rates, summarize.group(summarize.read_runs(runs))).axes
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


def test_the_picture_of_a_run_shows_what_its_log_says(runs, plotted):
    axes = plotted(summarize.draw_run, summarize.read_run(runs / "MRPC" / "long" / "run.json")).axes
    assert [axis.get_ylabel() for axis in axes] == ["loss", "dev acc and f1"]
    loss, dev = (axis.lines[0] for axis in axes)
    assert (list(loss.get_xdata()), list(loss.get_ydata())) == ([50], [0.1])  # the second line has none
    assert (list(dev.get_xdata()), list(dev.get_ydata())) == ([50, 100], [0.9, 0.7])
    assert [(line.get_label(), line.get_ydata()[0]) for line in axes[1].lines[1:]] == [("predecessor", 0.9)]
