"""scripts/report.py: the tables against numpy, the pictures, and what the documents tell."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import report
from grid import cells, documents, pictures, tables
from grid.averages import on_held_out
from grid.cells import Cell, Results, never_alone
from test_summarize import cells_of, write_run

from bert_of_theseus.run.command_line import UserError

ROOT = Path(__file__).parents[1]
TASKS = {"CoLA": "cola", "STS-B": "sts-b"}
SEEDS = (42, 43, 44)


def write_cell(folder: Path, cell: Cell, score: float, held_out: float) -> None:
    """The record of a run as reproduce.py leaves it."""
    flags = f"--learning_rate {cell.learning_rate} --seed {cell.seed}"
    flags += "" if cell.method == "predecessor" else " --replacing_rate 0.5"
    task = TASKS[cell.task]
    loyalty = {"score_correlation": 0.9} if task == "sts-b" else {"label_loyalty": 0.8}
    kept = None if cell.method == "predecessor" else 0.9
    path = write_run(folder / cell.folder, task, flags, kept, last=score, best=score + 0.01, loyalty=loyalty)
    record = json.loads((path / "run.json").read_text())
    metric = record["main_metric"]
    record["held_out"] = {"last": {metric: held_out}}
    if cell.method == "predecessor":
        del record["best"]
    elif cell.method == "one-module":
        record["held_out"] |= {f"module {i}": {metric: held_out - 0.01 * i} for i in (1, 2, 10)}
    else:
        record["held_out"]["best"] = {metric: held_out - 0.01 * (cell.seed - 40)}
    if cell.n_steps:
        record["steps"] = cell.n_steps
    (path / "run.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of two tasks and three seeds a whole grid with random scores, but that the best settings are these."""
    folder, random = tmp_path_factory.mktemp("results"), np.random.default_rng(0)
    for task in TASKS:
        best = [Cell(task, method, 42, "1e-4") for method in ("predecessor", *cells.COMPARED)]
        best = list(map(cells.at_first, best))
        linear, constant = (next(c for c in best if c.method == name) for name in ("linear", "constant"))
        more = [linear._replace(method=method) for method in cells.VARIANTS]
        more += [never_alone(constant)]
        more += [c._replace(n_layer=n) for c in best[1:] for n in (2, 1)]
        more += [c._replace(n_steps=n) for c in best[1:] for n in (50, 200)]
        if task == "STS-B":
            for at in (cells.at_rate, cells.at_equivalent_rate):
                more += [at(constant, rate) for rate in cells.RATES if rate != constant.rate]
        every = dict.fromkeys(c._replace(seed=seed) for c in [*best, *more] for seed in SEEDS)
        for cell in every:
            dev = (0.7 if cell._replace(seed=42) in best else 0.5) + 0.1 * random.random()
            write_cell(folder, cell, dev, 0.6 + 0.2 * random.random())
        for cell in best:
            write_cell(folder, cell._replace(learning_rate="2e-4"), 0.5, 0.9)
        for share in (0.25, 0.67):
            write_cell(folder, linear._replace(share=share), 0.5, 0.9)
        write_cell(folder, constant._replace(rate=0.7) if task == "CoLA" else linear._replace(rate=0.1), 0.5, 0.9)
    (folder / "speed").mkdir()
    for name, times in (("CoLA", 1.9), ("CoLA-layers2", 2.8), ("CoLA-layers1", 5.0)):
        models = {"examples_per_second": 100.0, "seconds_for_one": 0.01, "times_the_predecessor": times}
        figures = {"inference": {"predecessor": models, "successor": models}}
        (folder / "speed" / f"{name}.json").write_text(json.dumps(figures))
    return folder


@pytest.fixture(scope="module")
def results(folder) -> Results:
    return cells.read_grid(folder)


@pytest.fixture(scope="module")
def searched(results) -> Results:
    """The same, but that on CoLA the search found another share better, which then scores 90 on the held-out rows."""
    (quarter,) = (cell for cell in results.runs if cell.folder.startswith("CoLA/linear/lr1e-4-by0.25"))
    run = results.runs[quarter]
    run = run._replace(scores=run.scores | {"last": 0.9}, held_out={"last": 0.9}, loyalty={"label_loyalty": 0.1})
    better = {quarter._replace(seed=seed): run._replace(seed=seed) for seed in SEEDS}
    return results._replace(runs=results.runs | better)


def recorded(folder: Path, cell: str, which: str = "held_out") -> np.ndarray:
    """The scores of all seeds of a cell, in per cent, as their records have them."""
    records = [json.loads((folder / f"{cell}-seed{seed}" / "run.json").read_text()) for seed in SEEDS]
    return 100 * np.array(
        [r[which]["last"][r["main_metric"]] if which == "held_out" else r[which]["main"] for r in records]
    )


def shown(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def with_error(values: np.ndarray) -> str:
    return f"{values.mean():+.1f} ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}"


def of_method(folder: Path, setting: str, which: str = "held_out") -> np.ndarray:
    """(tasks, seeds)."""
    return np.array([recorded(folder, f"{task}/{setting}", which) for task in TASKS])


@pytest.mark.parametrize(
    "cell",
    [
        Cell("STS-B", "predecessor", 43, "1e-4"),
        Cell("STS-B", "constant", 43, "1e-4", 0.25, 0.5),
        Cell("CoLA", "linear", 1, "2e-4", 0.5, 0.3, 2, None),
        Cell("CoLA", "anti-curriculum", 1, "2e-4", 0.5, 0.1),
        Cell("CoLA", "equivalent-rates", 1, "0.001", 0.5, 0.1, None, 500),
        Cell("CoLA", "one-module", 1, "0.001", 1.0, 0.5),
    ],
)
def test_a_folder_tells_its_cell(tmp_path, cell):
    assert Cell.at(tmp_path / cell.folder) == cell
    for wrong in (cell.task + "/linear/mine", cell.task + "/mine/lr1e-4-seed1"):
        with pytest.raises(UserError, match="no folder of"):
            Cell.at(tmp_path / wrong)


def test_the_comparison_has_what_is_kept_of_the_mean_on_the_held_out_rows(folder, results):
    ours, theirs = of_method(folder, "linear/lr1e-4-by0.5"), of_method(folder, "predecessor/lr1e-4")
    rows = cells_of(tables.TABLES["held-out"](results))
    kept = 100 * ours.mean(0) / theirs.mean(0)
    assert rows["Theseus (linear)"] == [*map(shown, ours), shown(ours.mean(0)), shown(kept), "3"]
    assert rows["predecessor"] == [*map(shown, theirs), shown(theirs.mean(0)), "-", "3"]


def test_what_is_kept_is_also_told_above_a_constant_answer(folder, results):
    constant = dict(zip(TASKS, (0.0, 40.0), strict=True))
    table = tables.TABLES["held-out"](results._replace(constant_answers=constant))
    ours, theirs = of_method(folder, "linear/lr1e-4-by0.5").mean(0), of_method(folder, "predecessor/lr1e-4").mean(0)
    rows = cells_of(table)
    assert rows["constant answer"] == ["0.0", "40.0", "20.0", "-", "-", "-"]
    assert rows["Theseus (linear)"][-2] == shown(100 * (ours - 20) / (theirs - 20))
    assert "kept of the mean above a constant answer, %" in table
    only_one = results._replace(constant_answers={"CoLA": constant["CoLA"]})
    assert "constant" not in tables.TABLES["held-out"](only_one).replace("constant rate", "")


def test_what_a_search_of_the_share_adds_stands_apart_from_the_comparison(folder, results, searched):
    first = of_method(folder, "linear/lr1e-4-by0.5")
    assert tables.comparison(searched) == tables.comparison(results) and not tables.more_search(results)
    rows = cells_of(tables.more_search(searched))
    assert [*rows][2:] == ["Theseus (linear)"]
    by_task = with_error(90 - first[0]), "+0.0 ± 0.0", with_error((90 - first[0]) / 2)
    assert rows["Theseus (linear)"] == [*by_task]
    assert cells_of(tables.loyalty(results))["Theseus (linear)"] == ["80.0 ± 0.0", "90.0 ± 0.0"]
    assert tables.loyalty(searched) == tables.loyalty(results)


def test_the_paper_s_protocol_is_the_best_step_on_the_dev_set_and_the_median(folder, results):
    best = of_method(folder, "linear/lr1e-4-by0.5", "best")
    theirs = of_method(folder, "predecessor/lr1e-4", "last")  # which has no best step
    rows = cells_of(tables.TABLES["as-the-paper"](results))
    medians, of_predecessor = np.median(best, 1), np.median(theirs, 1)
    expected = [*medians, medians.mean(), 100 * medians.mean() / of_predecessor.mean()]
    assert rows["Theseus (linear)"] == [*(f"{value:.1f}" for value in expected), "3"]
    assert rows["predecessor"][-2:] == ["-", "3"]
    assert cells_of(tables.best_step(results))["Theseus (linear)"] == [with_error(np.array([-2, -3, -4]))] * 3


def test_in_the_paper_s_way_a_method_and_its_predecessor_have_the_same_seeds(folder, results):
    runs = {c: run for c, run in results.runs.items() if not (c.method == "linear" and c.seed == 44)}
    ours = np.median(of_method(folder, "linear/lr1e-4-by0.5", "best")[:, :2], 1)
    theirs = np.median(of_method(folder, "predecessor/lr1e-4", "last")[:, :2], 1)
    rows = cells_of(tables.as_the_paper(results._replace(runs=runs)))
    kept = 100 * ours.mean() / theirs.mean()
    assert rows["Theseus (linear)"] == [*(f"{value:.1f}" for value in (*ours, ours.mean(), kept)), "2"]
    on_one = {c: run for c, run in runs.items() if not (c.method == "linear" and c.task == "CoLA")}
    assert cells_of(tables.as_the_paper(results._replace(runs=on_one)))["Theseus (linear)"][2:4] == ["-", "-"]
    of_one = cells_of(tables.as_the_paper(results._replace(runs={c: r for c, r in runs.items() if c.task == "STS-B"})))
    assert of_one["Theseus (linear)"] == [f"{ours[1]:.1f}", f"{100 * ours[1] / theirs[1]:.1f}", "2"]


def test_differences_are_paired_by_seed_and_have_a_standard_error(folder, results):
    a, b = of_method(folder, "linear/lr1e-4-by0.5"), of_method(folder, "all-trained/lr1e-4")
    rows = cells_of(tables.differences(results))
    expected = [*map(with_error, a - b), with_error((a - b).mean(0))]
    assert rows["Theseus (linear) minus cut predecessor"] == expected
    assert "cut predecessor (distilled) minus cut predecessor" not in rows
    anti = of_method(folder, "anti-curriculum/lr1e-4-by0.5")
    assert cells_of(tables.variants(results))["1 minus the linear rate"] == [
        *map(with_error, anti - a),
        with_error((anti - a).mean(0)),
    ]
    lost = of_method(folder, "one-module/rate0.5-lr1e-4-by1.0") - of_method(folder, "predecessor/lr1e-4") - 2
    modules = cells_of(tables.modules(results))
    assert modules["module 2 alone"] == [*map(with_error, lost), with_error(lost.mean(0))]
    assert [*modules][2:] == ["module 1 alone", "module 2 alone", "module 10 alone"]


def test_seeds_that_one_side_lacks_are_left_out(results):
    runs = {c: run for c, run in results.runs.items() if not (c.method == "linear" and c.seed == 44)}
    fewer = Results(runs, {}, {})
    rows = cells_of(tables.TABLES["held-out"](fewer))
    assert (rows["Theseus (linear)"][-1], rows["predecessor"][-1]) == ("2", "3")
    (row,) = [
        r
        for name, r in cells_of(tables.differences(fewer)).items()
        if name == "Theseus (linear) minus cut predecessor (distilled)"
    ]
    a, b = ([run for run in fewer.best("CoLA", method) if run.seed != 44] for method in ("linear", "distilled"))
    values = np.array([on_held_out(x) - on_held_out(y) for x, y in zip(a, b, strict=True)])
    assert row[0] == with_error(values)


def test_every_run_of_the_search_is_shown_and_the_chosen_one_is_bold(folder, results):
    rows = cells_of(tables.search(results))
    first = {
        name: json.loads(path.read_text())["last"]["main"]
        for name, path in (
            ("linear", folder / "CoLA/linear/lr1e-4-by0.5-seed42/run.json"),
            ("constant", folder / "CoLA/constant/rate0.5-lr1e-4-by0.5-seed42/run.json"),
        )
    }
    assert rows["Theseus (linear), from 0.3, 1 after 0.5"][:2] == [f"**{100 * first['linear']:.1f}**", "50.0"]
    assert rows["Theseus (linear), from 0.3, 1 after 0.25"][:2] == ["50.0", "-"]
    assert rows["Theseus (constant rate), at 0.7, 1 after 0.5"][0] == "50.0"
    assert rows["Theseus (linear), from 0.1, 1 after 0.5"][2] == "50.0"


def test_constant_rates_have_a_fixed_learning_rate_or_a_fixed_product(folder, results):
    rows = cells_of(tables.rates(results))
    assert rows["0.1"] == [
        shown(recorded(folder, "STS-B/constant/rate0.1-lr1e-4-by0.5")),
        "3",
        shown(recorded(folder, "STS-B/equivalent-rates/rate0.1-lr0.0005-by0.5")),
        "3",
    ]
    assert rows["0.5"] == 2 * [shown(recorded(folder, "STS-B/constant/rate0.5-lr1e-4-by0.5")), "3"]


def test_rates_are_compared_over_the_seeds_that_all_have(folder, results):
    gone = Cell("STS-B", "constant", 43, "1e-4", 0.5, 0.1)
    fewer = results._replace(runs={cell: run for cell, run in results.runs.items() if cell != gone})
    rows = cells_of(tables.rates(fewer))
    assert {(row[1], row[3]) for row in [*rows.values()][2:]} == {("2", "3")}
    assert rows["0.5"][0] == shown(recorded(folder, "STS-B/constant/rate0.5-lr1e-4-by0.5")[[0, 2]])


def test_of_rates_with_one_of_the_two_learning_rates_only_that_column_is_there(folder, results):
    more = {cell: run for cell, run in results.runs.items() if cell.method != "constant" or cell.rate == 0.5}
    table = tables.TABLES["rates"](results._replace(runs=more))
    assert "rates" in pictures.pictures(results._replace(runs=more))
    assert table.splitlines()[0].split(" | ")[1:] == ["learning rate times rate fixed", "seeds |"]
    equivalent = recorded(folder, "STS-B/equivalent-rates/rate0.1-lr0.0005-by0.5")
    assert cells_of(table)["0.1"] == [shown(equivalent), "3"]


def test_depths_and_lengths_stand_beside_the_run_of_the_comparison(folder, results):
    table = tables.depths(results).splitlines()
    ours = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if "Theseus (linear) " in line]
    assert [row[1] for row in ours] == ["half", "2", "1"]
    scores = of_method(folder, "linear/lr1e-4-by0.5-layers2")
    kept = 100 * scores.mean(0) / of_method(folder, "predecessor/lr1e-4").mean(0)
    assert ours[1][2:] == [*map(shown, scores), shown(kept), "3"]
    long = recorded(folder, "CoLA/linear/lr1e-4-by0.5-steps200")
    lines = [line for line in tables.lengths(results).splitlines() if "Theseus (linear) " in line]
    assert [shown(long) in line for line in lines] == [False, False, True]


def test_other_lengths_are_compared_over_the_seeds_that_all_have(folder, results):
    (gone,) = (c for c in results.runs if c[:3] == ("CoLA", "linear", SEEDS[-1]) and c.n_steps == 200)
    table = tables.lengths(Results({c: run for c, run in results.runs.items() if c != gone}, {}, {}))
    ours = [line.split("|") for line in table.splitlines() if "Theseus (linear) " in line]
    columns = [recorded(folder, f"CoLA/linear/lr1e-4-by0.5{steps}")[:-1] for steps in ("", "-steps50", "-steps200")]
    assert [row[3].strip() for row in ours] == list(map(shown, columns))


def test_other_lengths_are_compared_at_the_setting_that_they_were_run_at(results):
    runs = dict(results.runs)
    better = next(c for c in runs if c[:3] == ("CoLA", "linear", 42) and c.share == 0.25)
    runs[better] = runs[better]._replace(scores=runs[better].scores | {"last": 0.99})
    assert cells.best_cell(runs, "CoLA", "linear") == better
    assert tables.lengths(Results(runs, {}, {})) == tables.lengths(results._replace(speed={}))


def test_of_other_depths_the_best_learning_rate_counts(results):
    runs = dict(results.runs)
    (tried,) = (c for c in runs if c[:3] == ("CoLA", "linear", 42) and c.n_layer == 1)
    better = runs[tried]._replace(scores=runs[tried].scores | {"last": 0.99}, held_out={"last": 0.123})
    rows = tables.depths(results._replace(runs=runs | {tried._replace(learning_rate="2e-4"): better})).splitlines()
    ours = [line.split("|")[3].strip() for line in rows if "Theseus (linear) " in line]
    assert ours[2] == "12.3"


def test_where_one_task_has_other_depths_the_mean_is_of_the_others_or_missing(results):
    def without(task: str, method: str) -> Results:
        gone = {c for c in results.runs if (c.task, c.method) == (task, method) and c.n_layer}
        return Results({c: run for c, run in results.runs.items() if c not in gone}, {}, {})

    table = tables.depths(without("CoLA", "linear"))
    assert "kept of the mean (STS-B), %" in table and "kept of the mean (CoLA, STS-B), %" in tables.depths(results)
    runs = without("CoLA", "linear").runs
    nothing_common = Results(
        {c: r for c, r in runs.items() if not (c.task == "STS-B" and c.n_layer and c.method != "linear")}, {}, {}
    )
    head, _, *rows = cells_of(tables.depths(nothing_common)).values()
    assert head[-2] == "kept of the mean, %" and {row[-2] for row in rows} == {"-"}


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_a_document_tells_what_the_records_in_results_give(name):
    text = (ROOT / name).read_text()
    assert documents.filled(text, documents.reader(ROOT / "results")) == text
    assert re.findall(r"<!-- ([a-z/-]+) -->", text)
    for picture in re.findall(r"!\[.*?\]\((\S+)\)", text):
        assert ((ROOT / name).parent / picture).exists()


def test_a_new_document_has_every_table_and_is_the_same_when_filled_again(folder, tmp_path):
    text = documents.fill_in(tmp_path / "results.md", folder)
    found = {name: text.count(f"<!-- {name} -->\n|") for name in tables.TABLES}
    assert found == dict.fromkeys(tables.TABLES, 1) | {"grid": 0, "more-search": 0}  # sentences
    assert "<!-- more-search -->\nNo run tells this." in text
    assert documents.fill_in(tmp_path / "results.md", folder) == text == (tmp_path / "results.md").read_text()
    inner = tmp_path / "inner.md"
    inner.write_text("<!-- more/held-out -->\n<!-- /more/held-out -->\n")
    with pytest.raises(UserError, match="more: there is no run"):
        documents.fill_in(inner, folder)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "one").symlink_to(folder)
    with pytest.raises(UserError, match="there is no run"):
        documents.fill_in(tmp_path / "all.md", tmp_path / "grids")


def test_of_methods_that_were_left_out_nothing_is_told(folder, results, tmp_path):
    runs = {c: r for c, r in results.runs.items() if c.method in ("predecessor", "all-trained") and not any(c[6:])}
    found = Results(runs, {}, {})
    told = {name for name, table in tables.TABLES.items() if table(found)}
    assert told == {"grid", "held-out", "best-step", "as-the-paper", "loyalty", "search"}
    assert list(pictures.pictures(found)) == ["comparison"]
    text = documents.filled("<!-- depths -->\n<!-- /depths -->\n", lambda folder: found)
    assert text == "<!-- depths -->\nNo run tells this.\n<!-- /depths -->\n"
    without_linear = Results(
        {c: r for c, r in results.runs.items() if c.method not in ("linear", *cells.VARIANTS)}, {}, {}
    )
    assert not tables.variants(without_linear) and tables.rates(without_linear) == tables.rates(results)


@pytest.mark.parametrize(
    ("text", "message"),
    [("<!-- nothing -->\n<!-- /nothing -->\n", "there is no table nothing"), (None, "there is no run")],
)
def test_mistakes_are_told_in_one_line_and_change_nothing(tmp_path, monkeypatch, text, message):
    document = tmp_path / "document.md"
    if text:
        document.write_text(text)
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path), str(document)])
    with pytest.raises(SystemExit, match=message) as stop:
        report.main()
    assert len(str(stop.value).splitlines()) == 1
    assert not document.exists() if text is None else document.read_text() == text


@pytest.mark.parametrize("name", ["comparison", "rates", "curves", "speed"])
def test_the_pictures_show_the_numbers_of_the_tables(folder, results, searched, name):
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure(layout="constrained")
    pictures.pictures(searched if name == "comparison" else results)[name](figure)
    lines = [line for axis in figure.axes for line in axis.lines]
    values = {round(float(y), 6) for line in lines for y in np.atleast_1d(line.get_ydata())}
    xs = {round(float(x), 6) for line in lines for x in np.atleast_1d(line.get_xdata())}
    ours, theirs = of_method(folder, "linear/lr1e-4-by0.5"), of_method(folder, "predecessor/lr1e-4")
    kept = round(float((100 * ours.mean(0) / theirs.mean(0)).mean()), 6)
    if name == "comparison":
        assert {round(float(x), 6) for x in ours.ravel()} <= xs
    elif name == "rates":
        assert round(float(recorded(folder, "STS-B/constant/rate0.1-lr1e-4-by0.5").mean()), 6) in values
    elif name == "curves":
        assert {round(float(y), 6) for y in ours.mean(1)} <= values and {50, 100, 200} <= xs
    else:
        assert kept in values and {1.9, 2.8, 5.0} <= xs
