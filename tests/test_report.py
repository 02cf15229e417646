"""scripts/report.py: its tables against numpy, and that the documents tell what the records give."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import report
from report import Record, Results
from summarize import Run

ROOT = Path(__file__).parents[1]
SCORES = {
    "predecessor": [0.90, 0.92, 0.88],
    "pretrained-layers": [0.60, 0.61, 0.65],
    "all-trained": [0.80, 0.82, 0.78],
    "frozen": [0.70, 0.75, 0.71],
    "constant": [0.81, 0.84, 0.83],
    "linear": [0.85, 0.86, 0.83],
    "falling": [0.60, 0.62, 0.61],
    "missing-gradients": [0.84, 0.86, 0.85],
    "every-second-layer": [0.83, 0.82, 0.81],
}


def record(method: str, i: int, main: float, learning_rate: float = 1e-4, by=None, rate=None) -> Record:
    metrics, its = {"acc": main, "f1": main + 0.01, "acc_and_f1": main}, SCORES["predecessor"][i]
    predecessor = {"acc": its, "f1": its + 0.02, "acc_and_f1": its}
    has_one = method != "predecessor"
    run = Run(
        *(Path("x"), "mrpc", "acc_and_f1", "linear", i, {"num_train_epochs": 2.0, "per_gpu_train_batch_size": 16}),
        *(main, None, its if has_one else None, None, {"label_loyalty": main} if has_one else {}, metrics),
        *(predecessor if has_one else {}, 460, 3600.0, "torch"),
    )
    return Record("MRPC", method, i, learning_rate, by, rate, run)


@pytest.fixture(scope="module")
def results() -> Results:
    by = {"constant": 0.5} | dict.fromkeys(["linear", *report.ABLATIONS], 0.25)
    rate, learning_rate = {"constant": 0.5}, {"frozen": 5e-5}
    records = [
        record(method, i, main, learning_rate.get(method, 1e-4), by.get(method), rate.get(method))
        for method, mains in SCORES.items()
        for i, main in enumerate(mains)
    ]
    # What the search has tried and not chosen, and other constant rates, of which one is better.
    records += [
        record("linear", 0, 0.5, 2e-4, 0.25),
        record("linear", 0, 0.84, by=0.67),
        record("frozen", 0, 0.1, 2e-4),
    ]
    records += [record("constant", i, main, by=0.5, rate=0.9) for i, main in enumerate([0.9, 0.92])]
    speed = {
        who: {"examples_per_second": n, "seconds_for_one": 0.5 / n}
        for who, n in (("predecessor", 100), ("successor", 190))
    }
    speed["successor"]["times_the_predecessor"] = 1.9
    return Results(records, {"MRPC": {"inference": speed}})


def rows_of(table: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines}


def test_the_comparison_has_means_deviations_and_what_is_kept_of_each_seed_s_predecessor(results):
    rows = rows_of(report.comparison(results))
    assert rows[""] == ["MRPC, mean of accuracy and F1", "kept, mean of the tasks, %"]
    assert rows["predecessor"] == ["90.0 ± 2.0", "-"]
    kept = 100 * np.array(SCORES["linear"]) / np.array(SCORES["predecessor"])
    assert rows["Theseus, linear from 0.3"] == ["84.7 ± 1.5", f"{kept.mean():.1f} ± {kept.std(ddof=1):.1f}"]


def test_the_paper_s_metric_is_f1_and_its_mean_over_tasks_is_what_is_kept(results):
    rows = rows_of(report.paper_metrics(results))
    ours, its = (100 * (np.mean(SCORES[who]) + add) for who, add in (("all-trained", 0.01), ("predecessor", 0.02)))
    assert rows["predecessor"] == [f"{its:.1f}", f"{its:.1f}", "100.0"]
    assert rows["predecessor, cut and fine-tuned"] == [f"{ours:.1f}", f"{ours:.1f}", f"{100 * ours / its:.1f}"]


def test_differences_are_in_standard_deviations_within_the_methods(results):
    rows = rows_of(report.differences(results))
    a, b = (100 * np.array(SCORES[method]) for method in ("linear", "all-trained"))
    sd = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    (cell,) = rows["Theseus, linear from 0.3 less predecessor, cut and fine-tuned"]
    assert cell == f"+{a.mean() - b.mean():.1f} (+{(a.mean() - b.mean()) / sd:.1f} sd)"
    cells = rows_of(report.variants(results))
    assert cells["falling rate"][0] == "61.0 ± 1.0" and cells["falling rate"][1].startswith("-23.7 (-")
    assert cells["Theseus, linear from 0.3"] == ["84.7 ± 1.5", ""]


def test_every_run_of_the_search_is_shown_and_the_chosen_one_is_bold(results):
    rows = rows_of(report.search(results))
    assert rows[""] == ["MRPC 5e-5", "MRPC 1e-4", "MRPC 2e-4"]
    assert rows["Theseus, linear from 0.3, 1 after 0.25"] == ["-", "**85.0**", "50.0"]
    assert rows["Theseus, linear from 0.3, 1 after 0.67"] == ["-", "84.0", "-"]
    assert rows["predecessor, cut, layers alone fine-tuned"] == ["**70.0**", "-", "10.0"]
    assert rows["Theseus, constant rate 0.5, 1 after 0.5"] == ["-", "**81.0**", "-"]  # not the 0.9 of another rate


def test_constant_rates_loyalty_and_speed_are_told(results):
    rows = rows_of(report.rates(results))
    # Of the two seeds that all of them have.
    assert rows["0.5"] == ["82.5 ± 2.1", "0 1"] and rows["0.9"] == ["91.0 ± 1.4", "0 1"] and "0.2" not in rows
    assert rows["1"] == ["72.5 ± 3.5", "0 1"]  # the frozen method, at its own best setting
    assert rows_of(report.loyalty(results))["Theseus, constant rate 0.5"] == ["82.7 ± 1.5"]
    assert rows_of(report.speed(results))["MRPC"] == ["100", "190", "1.90", "5.0 / 2.6"]
    assert "32 runs, 32.0 hours" in report.grid(results) and "on MRPC); seeds 0, 1, 2." in report.grid(results)


def test_the_pictures_are_made(results):
    pytest.importorskip("matplotlib")
    pictures = report.draw(results, list(report.PICTURES))
    assert pictures.keys() == report.PICTURES.keys()
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_a_document_tells_what_the_records_in_results_give(name):
    text = (ROOT / name).read_text()
    assert report.filled(text, report.read_results(ROOT / "results")) == text
    assert re.findall(r"<!-- ([a-z-]+) -->", text)
    for picture in re.findall(r"!\[.*?\]\((\S+)\)", text):
        assert ((ROOT / name).parent / picture).exists()


def test_mistakes_are_told_in_one_line_and_change_nothing(tmp_path):
    (tmp_path / "document.md").write_text("<!-- nothing -->\n<!-- /nothing -->\n")
    for folder, message in ((tmp_path, "there is no run.json"), (ROOT / "results", "there is no table nothing")):
        command = [sys.executable, "scripts/report.py", str(folder), str(tmp_path / "document.md")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "document.md").read_text() == "<!-- nothing -->\n<!-- /nothing -->\n"
