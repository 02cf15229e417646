"""scripts/reproduce.sh: which runs the grid is made of, that none is made twice, and that it can be stopped."""

import copy
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ablate
import pytest
import reproduce
import torch
from conftest import save_bert, write_glue
from grid.cells import COMPARED, VARIANTS, Cell, read_grid
from grid.commands import Commands
from grid.data import hold_out, longest_containing
from grid.runner import Runner
from grid.scoring import replace_one_module
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import run_glue
from bert_of_theseus import compress, export_successor
from bert_of_theseus.classifier import load_classifier
from glue_processors import TASKS, read_dev_sets, read_examples

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def flags(folder: Path, *more: str) -> list[str]:
    fixed = ["--model", folder / "model", "--glue_dir", folder, "--output_dir", folder / "out", "--seeds", "1 2"]
    fixed += ["--learning_rates", "5e-4 1e-3 2e-3 4e-3", "--num_train_epochs", 1, "--batch_size", 4]
    fixed += ["--predecessor_epochs", 1, "--n_evaluations", 1, "--depths", 1, "--lengths", 3]
    return [str(word) for word in [*fixed, "--tasks", "sts-b", *more, "--", "--no_cuda"]]


def command(args, *more: str) -> list[str]:
    return [sys.executable, "scripts/reproduce.py", *flags(args.glue_dir, *more)]


def call(args, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(args, *more), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=1500)


def parsed(grid: Commands, cell: Cell):
    """The arguments of the cell's run, as its script reads them."""
    _, script, *words = grid.command(cell)
    return (ablate if script == "scripts/ablate.py" else run_glue).parse_args(words)


def score(cell: Cell) -> float:
    """The method's best learning rate differs: predecessors' is the lowest, the linear schedule's the highest.

    With fewer layers it is the lowest too.

    The best share is a quarter, and the best replacing rate the last one that is tried.
    """
    best = 5e-4 if cell.n_layer else {"predecessor": 5e-4, "linear": 4e-3}.get(cell.method, 1e-3)
    rate = {"constant": 0.7, "linear": 0.5, "linear-whole": 0.5}.get(cell.method, 0)
    score = 0.8 - 10 * abs(float(cell.learning_rate) - best) + 0.01 * (cell.share == 0.25) + 0.001 * cell.seed
    return score + 0.002 * (cell.rate == rate)


def write_record(grid: Commands, cell: Cell) -> None:
    """A record as run_glue.py or ablate.py would leave it; of a predecessor also a model."""
    scores = {"metrics": dict.fromkeys(("pearson", "spearmanr", "corr"), score(cell)), "main": score(cell)}
    record = {"task": "sts-b", "main_metric": "corr", "arguments": vars(parsed(grid, cell))}
    record |= {"steps": grid.n_steps(cell), "training_seconds": 1.0}
    record |= {"versions": {"torch": "2", "transformers": "5"}, "predecessor": scores}
    record["last"] = scores | {"loyalty": {"score_correlation": 0.5}}
    record |= {"held_out": {"last": scores["metrics"]}, "held_out_sha256": grid.plan.held_out_sha256[cell.task]}
    if cell.method == "predecessor":
        del record["predecessor"]
        save_bert(grid.runs_folder(cell), num_labels=1, max_position_embeddings=128)
    grid.plan.record(cell).parent.mkdir(parents=True)
    grid.plan.record(cell).write_text(json.dumps(record))


@pytest.fixture
def made(tmp_path):
    """(args, grid, stages) of a grid all of whose runs have records."""
    write_glue(tmp_path / "STS-B", "sts-b", n_train=16, n_dev=8)
    save_bert(tmp_path / "model", num_labels=1, max_position_embeddings=128)
    args = reproduce.parse_args(flags(tmp_path))
    grid, stages = reproduce.prepare(args), []
    for name, cells in grid.plan.stages():
        stages.append((name, cells))
        for cell in cells:
            if not grid.plan.is_done(cell):
                write_record(grid, cell)
    return args, grid, stages


def test_nothing_is_left_of_a_finished_grid(made):
    """Also where the search of the rate found a better one than that with which the share was searched."""
    _, grid, stages = made
    assert grid.plan.best("STS-B", "linear").rate == 0.5 and grid.plan.best("STS-B", "constant").rate == 0.7
    assert list(grid.plan.stages()) == stages


def test_what_the_same_answer_for_all_held_out_rows_scores_is_noted(tmp_path):
    write_glue(tmp_path / "MRPC", "mrpc", n_train=640, n_dev=8)
    args = reproduce.parse_args(flags(tmp_path, "--tasks", "MRPC", "--depths", ""))
    commands = reproduce.prepare(args)
    held_out = commands.data["MRPC"].held_out.labels.mean()
    expected = max((held_out + 2 * held_out / (1 + held_out)) / 2, (1 - held_out) / 2)  # of accuracy and F1
    assert read_grid(args.output_dir / "results").constant_answers == {"MRPC": pytest.approx(100 * expected)}


def test_of_a_task_with_two_dev_sets_the_held_out_rows_are_one(tmp_path):
    write_glue(tmp_path / "MNLI", "mnli", n_train=640, n_dev=9)
    args = reproduce.parse_args(flags(tmp_path, "--tasks", "mnli", "--depths", ""))
    commands = reproduce.prepare(args)
    assert [path.name for path in commands.data["MNLI"].held_out_folder.iterdir()] == ["dev_matched.tsv"]
    cell = commands.plan.first("MNLI", "predecessor", "1e-3")
    model = save_bert(commands.runs_folder(cell), num_labels=3, max_position_embeddings=128)
    shutil.copytree(model, tmp_path / "copy")
    best = shutil.copytree(tmp_path / "copy", model / "checkpoint-best")
    weights = load_file(best / "model.safetensors")
    save_file(
        {n: -w if "classifier" in n else w for n, w in weights.items()}, best / "model.safetensors", {"format": "pt"}
    )
    scores = Runner(commands).score_held_out(cell)
    examples = read_examples(TASKS["mnli"], args.output_dir / "held_out" / "MNLI", "dev")
    for which, path in (("last", model), ("best", best)):
        logits = load_classifier(str(path), TASKS["mnli"].labels).predict_examples(examples, 128, 300)
        assert scores[which] == {"acc": (logits.argmax(1) == examples.labels).mean()}
    assert scores.keys() == {"last", "best"} and scores["last"] != scores["best"]


def test_the_search_goes_on_until_the_best_rate_lies_between_others(made):
    _, grid, stages = made
    tried = {}
    for cell in (cell for name, cells in stages if name.startswith("search: learning") for cell in cells):
        tried.setdefault(cell.method, []).append(cell.learning_rate)
    assert tried["predecessor"] == ["1e-3", "2e-3", "5e-4"]  # at the ladder's end
    assert tried["linear"] == ["1e-3", "2e-3", "4e-3"]
    assert {cell.seed for name, cells in stages if name.startswith("search") for cell in cells} == {1}
    last = dict(stages)
    assert "pretrained-layers" in {cell.method for cell in last["comparison, seed 1"]}
    assert {cell.rate for cell in last["search: the rate"] if cell.method == "linear"} == {0.3, 0.1, 0.5}
    assert {cell.rate for cell in last["search: the rate"] if cell.method == "constant"} == {0.3, 0.5, 0.7}
    assert {(cell.method, cell.learning_rate, cell.share) for cell in last["comparison, seed 2"]} == {
        ("all-trained", "1e-3", None),
        ("distilled", "1e-3", None),
        ("frozen", "1e-3", None),
        ("constant", "1e-3", 0.25),
        ("constant", "1e-3", 0.5),
        ("linear", "4e-3", 0.25),
        ("linear", "4e-3", 0.5),
        ("linear-whole", "1e-3", 0.25),
        ("linear-whole", "1e-3", 0.5),
    }
    for seed in (1, 2):
        assert {cell.seed for cell in last[f"comparison, seed {seed}"] + last[f"variants, seed {seed}"]} == {seed}
    variants = {(c.method, c.learning_rate, c.share) for c in last["variants, seed 2"] if c.method in VARIANTS}
    assert variants == {(method, "4e-3", 0.25) for method in VARIANTS}
    best = grid.plan.best("STS-B", "constant")
    others = [cell for cell in last["variants, seed 2"] if cell.method not in VARIANTS]
    assert [(c.learning_rate, c.share, c.rate) for c in others if c.method == "one-module"] == [("1e-3", 1.0, 0.5)]
    again = [method for method in COMPARED if method != "pretrained-layers"]  # which only the first seed has
    depths = [(cell.method, cell.learning_rate, cell.n_layer) for cell in others if cell.n_layer]
    assert depths == [(method, "5e-4", 1) for method in again]
    lengths = [(cell.method, cell.n_steps, grid.n_steps(cell)) for cell in others if cell.n_steps]
    assert lengths == [(method, 3, 3) for method in again]
    rates = [i / 10 for i in range(1, 11) if i / 10 != best.rate]  # which the comparison has
    assert [c.rate for c in others if c.method == "constant" and not (c.n_layer or c.n_steps)] == rates
    equivalent = [cell for cell in others if cell.method == "equivalent-rates"]
    assert [cell.rate for cell in equivalent] == rates
    for cell in equivalent:
        assert float(cell.learning_rate) * cell.rate == pytest.approx(float(best.learning_rate) * best.rate, rel=0.01)


def test_where_no_run_of_a_method_succeeds_lower_learning_rates_are_tried(made, tmp_path):
    _, grid, _ = made
    plan = dataclasses.replace(grid.plan, results=tmp_path)
    tried = [cell.learning_rate for _, cells in plan.learning_rate_search(["predecessor"]) for cell in cells]
    assert tried == ["1e-3", "2e-3", "5e-4"]


def test_share_and_rate_are_searched_only_if_asked_for(made):
    args, _, _ = made
    args.search = ["learning_rate"]
    names = [name for name, _ in reproduce.prepare(args).plan.stages() if name.startswith("search")]
    assert names.pop() == "search: other depths and lengths"
    assert names and all(name.startswith("search: learning rate") for name in names)


def test_every_run_has_the_same_epochs_and_batches_and_starts_from_the_predecessor_of_its_seed(made):
    _, grid, stages = made
    for cell in {cell for _, cells in stages for cell in cells}:
        args = parsed(grid, cell)
        n_steps = cell.n_steps or 2  # of 4 rows each, which is once through 8 rows of the 16
        if cell.method == "pretrained-layers":  # those of its predecessor as well, which it does not start from
            n_steps += 2
        assert (args.max_steps, args.per_gpu_train_batch_size, args.seed) == (n_steps, 4, cell.seed)
        assert args.scc_n_layer == cell.n_layer
        assert args.data_dir == str(grid.data["STS-B"].folder)
        source = "/model" if cell.method == "predecessor" else f"predecessor/lr5e-4-seed{cell.seed}"
        assert args.model_name_or_path.endswith(source)
        if cell.method in ("constant", "equivalent-rates", "one-module"):
            assert (args.replacing_rate, args.steps_for_replacing) == (cell.rate, max(1, round(n_steps * cell.share)))
        if cell.method in ("linear", "linear-whole"):
            n_replacing = max(1, round(n_steps * cell.share))
            assert (1 - args.replacing_rate) / args.scheduler_linear_k == pytest.approx(n_replacing, rel=1e-4)
            assert args.finetune_whole_successor == (cell.method == "linear-whole")


@pytest.mark.parametrize("name", ["sts-b", "cola", "mnli"])
def test_rows_are_held_out_by_their_content_and_nothing_is_lost(tmp_path, name, monkeypatch):
    monkeypatch.setattr("grid.data.LEAST_HELD_OUT", 10)
    task, source = TASKS[name], write_glue(tmp_path / "glue", name, n_train=60)
    folders = tmp_path / "data", tmp_path / "held_out"
    hold_out(task, source, *folders)
    before, kept = (read_examples(task, folder, "train") for folder in (source, folders[0]))
    held_out = read_examples(task, folders[1], "dev")
    assert (len(held_out.first), len(kept.first)) == (10, 50)
    assert sorted(kept.first + held_out.first) == sorted(before.first)
    dev = [{name: of.sha256 for name, of in read_dev_sets(task, folder).items()} for folder in (source, folders[0])]
    assert dev[0] == dev[1]
    # In another order the same rows are held out.
    lines = (source / task.train).read_text().splitlines(keepends=True)
    head = lines[: task.header]
    (source / task.train).write_text("".join(head + lines[len(head) :][::-1]))
    hold_out(task, source, *folders)
    assert sorted(read_examples(task, folders[1], "dev").first) == sorted(held_out.first)


def test_of_sentences_and_phrases_whole_sentences_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr("grid.data.LEAST_HELD_OUT", 10)
    task, source = TASKS["sst-2"], tmp_path
    sentences = [f"number {i} is a good film" for i in range(10, 30)]
    rows = [text for i, text in enumerate(sentences) for text in (f"number {i + 10} is", text, "a good film")]
    for name in ("train.tsv", "dev.tsv"):
        (source / name).write_text("sentence\tlabel\n" + "".join(f"{row}\t1\n" for row in rows))
    hold_out(task, source, tmp_path / "data", tmp_path / "held_out")
    (held_out,) = read_dev_sets(task, tmp_path / "held_out").values()
    kept = read_examples(task, tmp_path / "data", "train")
    assert len(kept.first) == 50 and held_out.first
    assert not [text for text in held_out.first if any(text in row for row in kept.first)]
    phrases = [row for row in kept.first if row != "a good film"]  # which is in all sentences
    assert not [row for row in phrases if any(row in text for text in held_out.first)]


def test_the_longest_text_that_contains_one():
    texts = ["a b", "a b c", "b", "a b c", "d", "x d"]
    assert [texts[i] for i in longest_containing(texts)] == ["a b c", "a b c", "a b c", "a b c", "x d", "x d"]


def test_a_run_from_another_predecessor_or_scored_on_other_rows_is_made_again(made):
    _, grid, stages = made
    cell = next(c for _, cells in stages for c in cells if c.method == "linear")
    record = json.loads(grid.plan.record(cell).read_text())
    assert grid.plan.is_done(cell)
    for change in (
        {"held_out_sha256": "other"},
        {"arguments": record["arguments"] | {"model_name_or_path": "runs/STS-B/predecessor/lr9e-9-seed1"}},
    ):
        grid.plan.record(cell).write_text(json.dumps(record | change))
        assert not grid.plan.is_done(cell)
    # What is left of it would pass for the new run, finished.
    grid.runs_folder(cell).mkdir(parents=True)
    (grid.runs_folder(cell) / "run.json").write_text(json.dumps(record | {"end": "now"}))
    process = Runner(grid).start(cell, None)
    process.kill()
    process.wait()
    assert not (grid.runs_folder(cell) / "run.json").exists()


def test_a_stopped_run_is_resumed_unless_another_predecessor_has_become_the_best(made):
    """Also where there is a record: of a predecessor whose weights are gone, and which is made again."""
    _, grid, stages = made
    runner = Runner(grid)
    for method, is_recorded in (("linear", False), ("predecessor", True)):
        cell = next(c for _, cells in stages for c in cells if c.method == method)
        folder, record = grid.runs_folder(cell), json.loads(grid.plan.record(cell).read_text())
        folder.mkdir(parents=True, exist_ok=True)
        if not is_recorded:
            grid.plan.record(cell).unlink()
        starts_from = record["arguments"]["model_name_or_path"]
        others = [(f"/elsewhere/{starts_from}", False), ("runs/another", method != "predecessor")]
        for name, is_another in [(starts_from, False), *others]:
            record["arguments"]["model_name_or_path"] = name
            (folder / "unfinished_run.json").write_text(json.dumps(record))
            assert runner.holds_another(cell, folder) == is_another
    assert not runner.holds_another(cell, grid.runs_folder(cell) / "nothing")


def test_an_error_of_its_own_leaves_no_run_behind(made, monkeypatch):
    _, grid, stages = made
    runner, started = Runner(grid), []

    def start(cell, device) -> subprocess.Popen:
        started.append(subprocess.Popen(["sleep", "60" if started else "0"]))
        return started[-1]

    def end(cell, status) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "end", end)
    runner.devices = [None, None]
    with pytest.raises(OSError, match="no space"):
        runner.make_each(stages[0][1][:2])
    assert [process.poll() for process in started] == [0, -signal.SIGTERM]


def test_a_dry_run_prints_the_commands_and_starts_none(made, capsys, monkeypatch):
    args, grid, stages = made
    missing = stages[-1][1][0]
    grid.plan.record(missing).unlink()
    before = sorted(args.output_dir.rglob("*"))
    monkeypatch.setattr(sys, "argv", command(args, "--dry_run")[1:])
    reproduce.main()
    first, *commands = capsys.readouterr().out.splitlines()
    assert "the others take about 0.0 hours" in first and commands == [shlex.join(grid.command(missing))]
    assert sorted(args.output_dir.rglob("*")) == before


def test_a_setting_of_a_method_that_is_not_asked_for_is_not_missed(made):
    args, _, _ = made
    words = ("--methods", "linear", "--learning_rates", "5e-4 4e-3", "--depths", "", "--lengths", "")
    plan = reproduce.prepare(reproduce.parse_args(flags(args.glue_dir, *words))).plan
    assert {cell.method for _, cells in plan.stages() for cell in cells} == {"predecessor", "linear"}


def test_elsewhere_than_in_the_project_paths_become_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    args = reproduce.parse_args(flags(Path()))
    assert (args.glue_dir, args.output_dir, args.model) == (tmp_path, tmp_path / "out", str(tmp_path / "model"))


@pytest.mark.parametrize("i", [0, 1])
def test_one_module_of_the_successor_stands_in_for_its_own(tmp_path, i):
    predecessor = AutoModelForSequenceClassification.from_pretrained(save_bert(tmp_path / "model")).eval()
    successor = copy.deepcopy(predecessor)
    compress(successor)
    successor = export_successor(successor)
    with torch.no_grad():
        for p in successor.bert.encoder.layer.parameters():
            p += 0.1
    expected = copy.deepcopy(predecessor)
    layers = expected.bert.encoder.layer
    kept = [[successor.bert.encoder.layer[0], *layers[2:]], [*layers[:2], successor.bert.encoder.layer[1]]][i]
    expected.bert.encoder.layer = torch.nn.ModuleList(kept)
    replace_one_module(predecessor, successor, i)
    tokens = torch.tensor([[2, 5, 6, 7, 3]])
    assert torch.equal(predecessor(tokens).logits, expected(tokens).logits)


def test_it_can_be_stopped_and_the_same_command_makes_only_what_is_missing(made):
    args, grid, stages = made
    missing = Cell("STS-B", "anti-curriculum", 2, "4e-3", 0.25, 0.5)
    failing = Cell("STS-B", "pretrained-layers", 1, "5e-4")
    for cell in (missing, failing):
        grid.plan.record(cell).unlink()
    grid.runs_folder(failing).parent.mkdir(parents=True)
    grid.runs_folder(failing).write_text("in the way")
    kept = grid.runs_folder(grid.plan.best("STS-B", "linear"))  # by an earlier call, with --keep_weights
    kept.mkdir(parents=True)

    process = subprocess.Popen(command(args), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = Path(f"{grid.runs_folder(failing)}.log")
    while not log.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == b"reproduce.py: stopped; the same command resumes\n" and b"stopped after" in out

    done = call(args)
    n_runs = len({cell for _, cells in stages for cell in cells})
    assert f"{n_runs} runs, {n_runs - 2} of them done; the others take about 0.0 hours" in done.stdout
    assert f"{missing.folder}: corr " in done.stdout and f"{failing.folder}: failed with status 1" in done.stdout
    record = json.loads(grid.plan.record(missing).read_text())
    assert record["steps"] == 2 and not grid.runs_folder(missing).exists() and kept.exists()
    assert {name: set(found) for name, found in record["held_out"].items()} == {
        "last": {"pearson", "spearmanr", "corr"},
        "best": {"pearson", "spearmanr", "corr"},
    }
    assert done.returncode == 1 and "1 runs failed" in done.stderr and "is a file" in done.stderr.splitlines()[-1]
    document = (args.output_dir / "results.md").read_text()
    assert document in done.stdout and "| Theseus (linear) " in document


def test_what_is_no_such_grid_is_refused_in_one_line(made, capsys, monkeypatch):
    args, _, _ = made
    (args.output_dir / "grid.json").write_text('{"batch_size": 8}')
    monkeypatch.setattr(sys, "argv", command(args)[1:])
    with pytest.raises(SystemExit, match=r"holds another grid.*batch_size was 8, is 4"):
        reproduce.main()
    for words, message in (
        (["--tasks", "sst"], "there is no task 'sst'"),
        (["--tasks", "mrpc ax"], "ax has no labels"),
        (["--tasks", ""], "name a task"),
        (["--seeds", "one"], "'one'"),
        (["--search", "rate"], "--search rate"),
        (["--search", "learning_rate"], "constant-rates"),
        (["--methods", "linear mine"], "--methods mine"),
        (["--methods", "linear one-module"], "one-module: it has the setting that is best for constant"),
        (["--depths", "0"], "at least 1"),
        (["--rate_task", "mrpc"], "--rate_task"),
        (["--rate_task", "sts-b sts-b mrpc"], "--rate_task"),
        (["--", "--seed=3"], "--seed after --"),
        (["--", "--metric_for_best_model", "f1"], "--metric_for_best_model after --"),
    ):
        with pytest.raises(SystemExit):
            reproduce.parse_args(flags(args.glue_dir, *words))
        told = capsys.readouterr().err
        assert message in told and len(told.splitlines()) == 1


def test_the_shell_script_explains_itself_and_refuses_in_one_line():
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
    words = ["--tasks", "mrpc", "--learning_rates", "1e-3 2e-3", "--search", "learning_rate"]
    words += ["--methods", "all-trained constant linear anti-curriculum one-module"]
    args = reproduce.parse_args(flags(tmp_path, *words))
    done = call(args, *words)
    assert done.returncode == 0, done.stderr
    document = (tmp_path / "out" / "results.md").read_text()
    tables = [line for line in document.splitlines() if line.startswith("|")]
    assert "module 2 alone" in document and "1 minus the linear rate" in document
    assert len(tables) > 30 and not [line for line in tables if line.count("| - ") > 3]
    again = call(args, *words)
    assert again.stdout.endswith(document) and ": 0 of " in again.stdout
    # A predecessor whose weights are gone is made again where a run needs it.
    grid = reproduce.prepare(args)
    missing = next(cell for name, cells in grid.plan.stages() if name == "variants, seed 2" for cell in cells)
    grid.plan.record(missing).unlink()
    (grid.runs_folder(grid.plan.predecessor("MRPC", 2)) / "model.safetensors").unlink()
    once_more = call(args, *words)
    assert "== variants, seed 2: 1 predecessors to make" in once_more.stdout
    assert once_more.stdout.count("acc_and_f1 0.") == 2 and once_more.stdout.endswith(document)
