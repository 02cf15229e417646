import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import save_bert, save_roberta, write_glue
from safetensors.torch import load_file, save_file
from tensorboardX.proto.event_pb2 import Event
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    pipeline,
)

import run_glue
from bert_of_theseus.classifier import load_classifier
from bert_of_theseus.data.scores import compute_loyalty, compute_metrics
from bert_of_theseus.run.processes import launch_command
from glue_processors import TASKS, read_examples

ROOT = Path(__file__).parents[1]


def arguments(task: str, model: Path, data: Path, output: Path, *more: object) -> list[str]:
    fixed = ["--task_name", task, "--model_name_or_path", model, "--data_dir", data, "--output_dir", output]
    return [str(a) for a in [*fixed, "--max_seq_length", 32, "--learning_rate", 1e-3, "--no_cuda", *more]]


def run_as_command(*args: object, **kwargs) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "run_glue.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, **kwargs)


def run_here(*args: object) -> None:
    run_glue.run_command(run_glue.parse_args([str(a) for a in args]))


def json_lines(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def read_results(folder: Path) -> dict[str, float]:
    lines = (folder / "eval_results.txt").read_text().splitlines()
    assert lines == sorted(lines)
    return {key: float(value) for key, value in (line.split(" = ") for line in lines)}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: value by step of every scalar, without those that a resumed run has taken back."""
    found = {}
    for path in sorted(folder.glob("runs/events.out.tfevents.*"), key=lambda path: int(path.suffix[1:])):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])  # then 4 bytes of checksum, the event, 4 more
            event = Event.FromString(data[at + 12 : at + 12 + length])
            if event.HasField("session_log"):
                found = {tag: {s: v for s, v in of.items() if s < event.step} for tag, of in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            at += 16 + length
    return {tag: values for tag, values in found.items() if values}


def logits_again(folder: Path, data: Path, task_name: str) -> np.ndarray:
    """(rows, outputs): a saved model's for the dev set in the table's order, by transformers alone, row by row."""
    task = TASKS[task_name]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = read_examples(task, data, "dev")
    logits = []
    for i, first in enumerate(examples.first):
        second = examples.second[i] if examples.second else None
        inputs = tokenizer(first, second, truncation=True, max_length=32, return_tensors="pt")
        logits.append(model(**inputs).logits[0].detach().numpy())
    names = [model.config.id2label[i].lower() for i in range(model.config.num_labels)]
    if task.labels is None or names[0] == "label_0":
        return np.array(logits)
    return np.array(logits)[:, [names.index(label.lower()) for label in task.labels]]


def score_again(folder: Path, data: Path, task_name: str) -> dict[str, float]:
    """The dev metrics of a saved model."""
    task, logits = TASKS[task_name], logits_again(folder, data, task_name)
    predicted = logits[:, 0] if task.labels is None else logits.argmax(axis=1)
    return compute_metrics(task, predicted, read_examples(task, data, "dev").labels)


# ----------------------------------------------------------------------- whole runs, as commands


def test_the_readme_command_compresses_with_the_linear_schedule(bert_folder, tmp_path):
    data, output = write_glue(tmp_path / "MRPC", "mrpc"), tmp_path / "successor"
    flags = "--do_train --do_eval --do_lower_case --evaluate_during_training --per_gpu_train_batch_size 8 "
    flags += "--per_gpu_eval_batch_size 8 --save_steps 5 --logging_steps 5 --num_train_epochs 2 "
    flags += "--replacing_rate 0.3 --scheduler_type linear --scheduler_linear_k 0.1"
    done = run_as_command(*arguments("MRPC", bert_folder, data, output, *flags.split()))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr

    printed = json_lines(done.stdout)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    for exact, rounded in zip(lines, printed, strict=True):
        assert rounded == pytest.approx(exact, rel=1e-4)
    logged = {line["step"]: line for line in lines if "learning_rate" in line}
    assert list(logged) == [5, 10, 12]
    assert [logged[s]["replacing_rate"] for s in logged] == pytest.approx(
        [0.3 + 0.1 * (s - 1) if s < 8 else 1 for s in logged]
    )
    assert [logged[s]["learning_rate"] for s in logged] == pytest.approx([1e-3 * (1 - (s - 1) / 12) for s in logged])
    scores = {line["step"]: line["eval_acc_and_f1"] for line in lines if "eval_acc_and_f1" in line}
    assert list(scores) == [5, 10, 12]

    # Files: ordinary checkpoints of two layers, and nothing else.
    assert sorted(p.name for p in output.iterdir() if p.is_dir()) == [
        "checkpoint-10",
        "checkpoint-5",
        "checkpoint-best",
        "runs",
    ]
    for folder in (output, output / "checkpoint-5", output / "checkpoint-10", output / "checkpoint-best"):
        config = json.loads((folder / "config.json").read_text())
        assert config["num_hidden_layers"] == 2 and config["id2label"] == {"0": "0", "1": "1"}
        weights = load_file(folder / "model.safetensors")
        assert {name.split(".")[3] for name in weights if ".layer." in name} == {"0", "1"}
        assert {w.dtype for w in weights.values()} == {torch.float32}
    assert not [p for p in output.rglob("*") if p.suffix in {".tmp", ".bin", ".pt"}]

    # What was printed is what the reloaded models score.
    results = read_results(output)
    assert results == pytest.approx(score_again(output, data, "mrpc"))
    assert results["acc_and_f1"] == pytest.approx(scores[12])
    best_step = max(scores, key=lambda step: (scores[step], -step))
    best = read_results(output / "checkpoint-best")
    assert best.pop("step") == best_step and 0 <= best.pop("label_loyalty") <= 1 and best.pop("probability_loyalty")
    assert best == pytest.approx(score_again(output / "checkpoint-best", data, "mrpc"))
    assert best["acc_and_f1"] == pytest.approx(scores[best_step])

    # The comparison is the last thing printed.
    table = done.stdout.splitlines()[-4:]
    predecessor = score_again(bert_folder, data, "mrpc")
    assert table[0].split()[:5] == ["acc", "f1", "acc_and_f1", "acc_and_f1", "kept"]
    assert table[1].split()[:5] == [
        "predecessor",
        *(f"{predecessor[k]:.4f}" for k in ("acc", "f1", "acc_and_f1")),
        "100.0",
    ]
    assert table[2].startswith("successor, last step (12)") and f"{results['acc_and_f1']:.4f}" in table[2]
    assert table[3].startswith(f"successor, best step ({best_step})") and f"{scores[best_step]:.4f}" in table[3]
    assert f"{100 * results['acc_and_f1'] / predecessor['acc_and_f1']:.1f} %" in table[2]
    parameters = AutoModelForSequenceClassification.from_pretrained(output).num_parameters()
    assert f" {parameters:,} " in table[2]

    # The run's own record has them too, and the successor carries a card.
    shown = scalars(output)
    run = json.loads((output / "run.json").read_text())
    assert run["arguments"]["replacing_rate"] == 0.3 and run["parameters"] == parameters and run["steps"] == 12
    assert run["predecessor"]["metrics"] == pytest.approx(predecessor)
    assert run["last"]["metrics"] == pytest.approx(results) and run["last"]["step"] == 12
    assert run["best"]["metrics"] == pytest.approx(best) and run["best"]["step"] == best_step
    ours, theirs = (logits_again(folder, data, "mrpc") for folder in (output, bert_folder))
    loyalty = compute_loyalty(TASKS["mrpc"], ours, theirs)
    assert run["last"]["loyalty"] == pytest.approx(loyalty, abs=1e-5) and loyalty["probability_loyalty"] < 1
    assert shown["eval_label_loyalty"][12] == pytest.approx(loyalty["label_loyalty"])
    assert f"{loyalty['label_loyalty']:.4f}  " in table[2]
    card = (output / "README.md").read_text()
    for fact in (
        "GLUE MRPC",
        f"{bert_folder.name} (4 layers)",
        "linearly, by 0.1 a step, from 0.3 to 1 at step 8",
        "12 optimiser steps",
    ):
        assert fact in card
    assert f"acc_and_f1 {results['acc_and_f1']:.4f}" in card
    assert f"acc_and_f1 {best['acc_and_f1']:.4f}" in (output / "checkpoint-best" / "README.md").read_text()

    # TensorBoard has the same numbers.
    evaluated = "acc f1 acc_and_f1 label_loyalty probability_loyalty".split()
    assert shown.keys() == {"loss", "learning_rate", "replacing_rate", *(f"eval_{name}" for name in evaluated)}
    assert shown["eval_acc_and_f1"] == pytest.approx(scores)
    assert shown["loss"] == pytest.approx({s: line["loss"] for s, line in logged.items() if "loss" in line})

    # The plan was said before: steps, dev passes, checkpoints.
    assert "12 with 8 rows each" in done.stderr and "Evaluation   4 passes" in done.stderr
    assert "4 checkpoints of" in done.stderr
    assert "from 0.3 to 1 at step 8" in done.stderr  # as logged above


def test_a_constant_rate_compresses_a_roberta_for_regression(tmp_path, capsys, caplog):
    model = save_roberta(tmp_path / "model", num_labels=1)
    data, output = write_glue(tmp_path / "STS-B", "sts-b"), tmp_path / "successor"
    flags = "--do_train --do_eval --per_gpu_train_batch_size 16 --max_steps 8 --logging_steps 1 --do_lower_case "
    flags += "--replacing_rate 0.5 --steps_for_replacing 6 --scc_n_layer 1 --save_steps 0"
    run_here(*arguments("STS-B", model, data, output, *flags.split()))
    assert "do_lower_case is ignored" in caplog.text
    logged = [line for line in json_lines(capsys.readouterr().out) if "learning_rate" in line]
    assert [line["replacing_rate"] for line in logged] == [0.5] * 6 + [1.0] * 2
    assert any("loss" not in line for line in logged) and any(
        "loss" in line for line in logged
    )  # one module: half the draws
    assert read_results(output) == pytest.approx(score_again(output, data, "sts-b"), abs=1e-5)
    assert AutoModelForSequenceClassification.from_pretrained(output).config.num_hidden_layers == 1
    assert not list(output.glob("checkpoint-*"))
    # The successor's score is a number, not a probability, in a pipeline too.
    score = pipeline("text-classification", model=str(output))("good film")[0]["score"]
    inputs = AutoTokenizer.from_pretrained(output)("good film", return_tensors="pt")
    logits = AutoModelForSequenceClassification.from_pretrained(output)(**inputs).logits
    assert score == pytest.approx(logits.item(), abs=1e-5)


def test_mnli_is_scored_on_both_dev_sets_with_the_models_own_label_order(tmp_path, capsys):
    order = ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]
    labels = {"id2label": dict(enumerate(order)), "label2id": {name: i for i, name in enumerate(order)}}
    model = save_bert(tmp_path / "model", num_labels=3, **labels)
    data, output = write_glue(tmp_path / "MNLI", "mnli"), tmp_path / "successor"
    flags = "--do_train --do_eval --evaluate_during_training --max_steps 4 --logging_steps 2 --replacing_rate 0.6 "
    flags += "--scheduler_type linear --scheduler_linear_k 0.2 --save_steps 2 --eval_all_checkpoints"
    run_here(*arguments("mnli", model, data, output, *flags.split()))
    printed = capsys.readouterr().out
    expected = {
        "mnli/acc": score_again(output, data, "mnli")["acc"],
        "mnli-mm/acc": score_again(output, data, "mnli-mm")["acc"],
        **{
            f"{name}/acc_{n}": score_again(output / f"checkpoint-{n}", data, name)["acc"]
            for n in (2, 4)
            for name in ("mnli", "mnli-mm")
        },
    }
    assert read_results(output) == pytest.approx(expected)
    predecessor = [f"{score_again(model, data, name)['acc']:.4f}" for name in ("mnli", "mnli-mm")]
    assert printed.splitlines()[-3].split()[:3] == ["predecessor", *predecessor]
    names = AutoModelForSequenceClassification.from_pretrained(output).config.id2label
    assert names == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_without_a_replacing_rate_a_model_without_a_head_is_fine_tuned(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    folder = save_bert(tmp_path / "model", num_labels=3)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    data, output = write_glue(tmp_path / "CoLA", "cola", n_train=64), tmp_path / "predecessor"
    flags = "--do_train --do_eval --evaluate_during_training --num_train_epochs 40 --logging_steps 40 --save_steps 0"
    run_here(*arguments("CoLA", folder, data, output, *flags.split(), "--per_gpu_train_batch_size", 16))
    printed = capsys.readouterr().out
    lines = json_lines(printed)
    assert printed.splitlines()[-1].startswith("{"), "plain fine-tuning prints no comparison"
    assert all("replacing_rate" not in line for line in lines)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert read_results(output) == pytest.approx(score_again(output, data, "cola"))
    assert "classifier.weight" in caplog.text  # said to be new
    model = AutoModelForSequenceClassification.from_pretrained(output)
    assert model.config.num_hidden_layers == 4 and model.config.num_labels == 2
    # The same folder is a predecessor now.
    run_here(
        *arguments(
            "CoLA", output, data, tmp_path / "successor", "--do_train", "--max_steps", 1, "--replacing_rate", 0.5
        )
    )
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "successor").config.num_hidden_layers == 2


# ----------------------------------------------------------------------- rules of the flags


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data") / "MRPC", "mrpc", n_train=20, n_dev=10)


def test_do_eval_alone_evaluates_output_dir_and_else_the_named_model(bert_folder, mrpc, tmp_path, capsys):
    output = tmp_path / "output"
    run_here(*arguments("mrpc", bert_folder, mrpc, output, "--do_eval"))
    assert read_results(output) == pytest.approx(score_again(bert_folder, mrpc, "mrpc"))
    successor = tmp_path / "successor"
    run_here(*arguments("mrpc", bert_folder, mrpc, successor, "--do_train", "--max_steps", 3, "--replacing_rate", 1))
    run_here(*arguments("mrpc", bert_folder, mrpc, successor, "--do_eval"))
    assert read_results(successor) == pytest.approx(score_again(successor, mrpc, "mrpc"))


def test_an_evaluation_of_the_best_checkpoint_leaves_what_the_run_knows_of_it(bert_folder, mrpc, tmp_path, capsys):
    best = tmp_path / "checkpoint-best"
    run_here(*arguments("mrpc", bert_folder, mrpc, best, "--do_train", "--max_steps", 1, "--replacing_rate", 1))
    (best / "eval_results.txt").write_text("acc = 0.5\nstep = 1\n")
    capsys.readouterr()
    run_here(*arguments("mrpc", bert_folder, mrpc, best, "--do_eval", "--max_eval_samples", 4))
    assert "eval_acc" in json.loads(capsys.readouterr().out) and read_results(best) == {"acc": 0.5, "step": 1}


def test_do_eval_alone_cuts_the_input_as_in_training(bert_folder, mrpc, tmp_path):
    output = tmp_path / "output"
    run_here(*arguments("mrpc", bert_folder, mrpc, output, *TRAIN, "--do_eval", "--max_seq_length", 8))
    trained = read_results(output)
    command = arguments("mrpc", bert_folder, mrpc, output, "--do_eval")
    at = command.index("--max_seq_length")
    run_here(*command[:at], *command[at + 2 :])
    assert read_results(output) == trained
    run_here(*command)
    evaluated = read_results(output)
    assert evaluated == pytest.approx(score_again(output, mrpc, "mrpc")) and evaluated != trained
    run_here(*command, "--max_eval_samples", 4)
    assert read_results(output) == evaluated


def test_max_steps_runs_exactly_so_many_and_an_epochs_leftover_micro_batches_are_dropped(
    bert_folder, mrpc, tmp_path, capsys
):
    flags = "--do_train --logging_steps 1 --per_gpu_train_batch_size 6 --gradient_accumulation_steps 3 --save_steps 0"
    for more, n_steps in (
        (["--max_steps", 5], 5),
        (["--num_train_epochs", 2.9], 2),
    ):  # 20 rows: 4 batches, 1 step an epoch
        run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / str(n_steps), *flags.split(), *more))
        assert [line["step"] for line in json_lines(capsys.readouterr().out)] == list(range(1, n_steps + 1))


def test_the_same_command_gives_the_same_weights(bert_folder, mrpc, tmp_path):
    flags = ["--do_train", "--max_steps", "4", "--replacing_rate", "0.5", "--save_steps", "0"]
    weights = []
    for name, seed, more in (("a", 1, []), ("b", 1, ["--deterministic"]), ("c", 2, [])):  # which is for GPUs
        run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / name, *flags, "--seed", seed, *more))
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_only_the_successors_layers_move(bert_folder, mrpc, tmp_path):
    flags = ["--do_train", "--max_steps", "4", "--replacing_rate", "0.9", "--save_steps", "0", "--weight_decay", "0.1"]
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "s", *flags))
    before, after = load_file(bert_folder / "model.safetensors"), load_file(tmp_path / "s" / "model.safetensors")
    for name, weight in after.items():
        assert torch.equal(weight, before[name]) == (".layer." not in name), name


def test_the_whole_successor_is_fine_tuned_from_its_first_step_alone_where_asked_for(bert_folder, mrpc, tmp_path):
    flags = "--do_train --max_steps 8 --replacing_rate 0.9 --steps_for_replacing 4 --save_steps 4 --logging_steps 1 "
    flags += "--finetune_whole_successor"
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "s", *flags.split()))
    before, after = load_file(bert_folder / "model.safetensors"), load_file(tmp_path / "s" / "model.safetensors")
    replaced = load_file(tmp_path / "s" / "checkpoint-4" / "model.safetensors")
    for name, weight in after.items():
        assert torch.equal(replaced[name], before[name]) == (".layer." not in name), name
        assert not torch.equal(weight, replaced[name]) or name.endswith("key.bias"), name  # which attention ignores
    logged = [json.loads(line) for line in (tmp_path / "s" / "log.jsonl").read_text().splitlines()]
    shares = [1, 7 / 8, 6 / 8, 5 / 8, 1, 3 / 4, 2 / 4, 1 / 4]
    assert [line["learning_rate"] for line in logged] == pytest.approx([1e-3 * share for share in shares])


def test_without_its_slope_the_linear_rate_is_1_after_half_of_the_steps(bert_folder, mrpc, tmp_path):
    flags = "--do_train --max_steps 8 --replacing_rate 0.2 --scheduler_type linear --save_steps 0 --logging_steps 1"
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "s", *flags.split()))
    logged = [json.loads(line) for line in (tmp_path / "s" / "log.jsonl").read_text().splitlines()]
    rates = [line["replacing_rate"] for line in logged]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    assert json.loads((tmp_path / "s" / "run.json").read_text())["arguments"]["scheduler_linear_k"] == pytest.approx(
        0.2
    )


def test_evaluation_in_between_does_not_change_the_training(bert_folder, mrpc, tmp_path):
    flags = ["--do_train", "--max_steps", 6, "--replacing_rate", 0.6, "--steps_for_replacing", 9, "--save_steps", 0]
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "a", *flags, "--logging_steps", 0))
    more = ["--evaluate_during_training", "--logging_steps", 1]
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "b", *flags, *more))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "flags",
    [
        ["--warmup_steps", 2],
        ["--max_grad_norm", 1e-3],
        ["--weight_decay", 0.5],
        ["--adam_epsilon", 1.0],
        ["--seed", 7],
        ["--bf16"],
        ["--replacing_rate", 0.1],
        ["--max_seq_length", 6],
        ["--tokenizer_name", "other"],
    ],
    ids=lambda flags: flags[0],
)
def test_a_flag_changes_what_is_trained(bert_folder, mrpc, tmp_path, flags):
    other = save_bert(tmp_path / "other")
    vocabulary = (other / "vocab.txt").read_text().split()
    (other / "vocab.txt").write_text("\n".join(vocabulary[:5] + vocabulary[:4:-1]))
    BertTokenizerFast(str(other / "vocab.txt")).save_pretrained(other)
    flags = [other if flag == "other" else flag for flag in flags]
    fixed = ["--do_train", "--max_steps", 3, "--replacing_rate", 0.7, "--steps_for_replacing", 9, "--save_steps", 0]
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "a", *fixed))
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "b", *fixed, *flags))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_the_seed_decides_data_order_dropout_and_draws(bert_folder, mrpc, tmp_path, monkeypatch):
    found = {}

    def spy(name: str, function):
        def called(*args, **kwargs):
            found[name] = args
            return function(*args, **kwargs)

        return called

    for module, name in ((run_glue, "train_batches"), (run_glue.transformers, "set_seed"), (run_glue, "compress")):
        monkeypatch.setattr(module, name, spy(name, getattr(module, name)))
    flags = ["--do_train", "--max_steps", 1, "--replacing_rate", 0.5, "--seed", 7]
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "o", *flags))
    assert {name: args[-1] for name, args in found.items()} == {"train_batches": 7, "set_seed": 7, "compress": 7}


def test_flags_that_change_no_weight_have_their_effect(bert_folder, mrpc, tmp_path, monkeypatch):
    data = shutil.copytree(mrpc, tmp_path / "MRPC")
    command = arguments("mrpc", bert_folder, data, tmp_path / "o", "--do_train", "--replacing_rate", 1)
    args = run_glue.parse_args([*command, "--gradient_checkpointing"])
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    run_glue.new_state(args, model, 4)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    args = run_glue.parse_args([*command, "--metric_for_best_model", "acc"])
    assert run_glue.read_data(args).task.main_key == "acc"

    evaluate = arguments("mrpc", bert_folder, data, tmp_path / "e", "--do_eval")
    written = []
    for more in ([], [], ["--overwrite_cache"]):
        run_here(*evaluate, *more)
        written.append(max(path.stat().st_mtime_ns for path in data.glob("cached_*")))
    assert written[0] == written[1] < written[2]

    def dropout(*_) -> None:
        torch.manual_seed(0)
        masks.append(torch.nn.functional.dropout(torch.ones(64), 0.5))

    masks = []
    monkeypatch.setattr(run_glue, "main", dropout)
    for more in ([], ["--no_fast_kernels"]):
        run_here(*command, *more)
    dropout()
    assert torch.equal(masks[1], masks[2]) and not torch.equal(masks[0], masks[2])


def test_training_counts_labels_as_the_model_does(capsys, tmp_path):
    names = ["neutral", "contradiction", "entailment"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = save_bert(tmp_path / "model", num_labels=3, **labels, **dropout)
    data = write_glue(tmp_path / "MNLI", "mnli", n_train=12)
    flags = ["--do_train", "--max_steps", 1, "--logging_steps", 1, "--per_gpu_train_batch_size", 12]
    run_here(*arguments("mnli", folder, data, tmp_path / "out", *flags))
    (line,) = json_lines(capsys.readouterr().out)
    examples = read_examples(TASKS["mnli"], data, "train")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    batch = tokenizer(examples.first, examples.second, padding=True, return_tensors="pt")
    outputs = torch.tensor([names.index(TASKS["mnli"].labels[label]) for label in examples.labels])
    assert line["loss"] == pytest.approx(model(**batch, labels=outputs).loss.item(), rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [[], ["--fp16"], ["--bf16"]], ids=["float32", "fp16", "bf16"])
def test_a_run_on_a_gpu(bert_folder, mrpc, tmp_path, precision):
    flags = ["--do_train", "--do_eval", "--max_steps", 4, "--replacing_rate", 0.5, "--scheduler_type", "linear"]
    command = arguments("mrpc", bert_folder, mrpc, tmp_path / "s", *flags, "--scheduler_linear_k", 0.1, *precision)
    done = run_as_command(*(a for a in command if a != "--no_cuda"))
    assert done.returncode == 0, done.stderr
    assert "on cuda" in done.stderr
    assert {w.dtype for w in load_file(tmp_path / "s" / "model.safetensors").values()} == {torch.float32}
    assert read_results(tmp_path / "s") == pytest.approx(score_again(tmp_path / "s", mrpc, "mrpc"), abs=0.11)


def test_bf16_trains_and_still_writes_float32(bert_folder, mrpc, tmp_path):
    flags = ["--do_train", "--max_steps", "2", "--replacing_rate", "0.9", "--bf16"]
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "s", *flags))
    assert {w.dtype for w in load_file(tmp_path / "s" / "model.safetensors").values()} == {torch.float32}


def test_gradient_checkpointing_trains_the_same(bert_folder, mrpc, tmp_path):
    flags = ["--do_train", "--max_steps", 4, "--replacing_rate", 0.5, "--steps_for_replacing", 9, "--save_steps", 0]
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "a", *flags))
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "b", *flags, "--gradient_checkpointing"))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


@pytest.mark.slow
def test_compiled_layers_train_the_same(tmp_path, mrpc):
    folder = save_bert(tmp_path / "model", n_layer=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    flags = ["--do_train", "--do_eval", "--max_steps", 4, "--replacing_rate", 0.5, "--steps_for_replacing", 9]
    run_here(*arguments("mrpc", folder, mrpc, tmp_path / "a", *flags))
    run_here(*arguments("mrpc", folder, mrpc, tmp_path / "b", *flags, "--torch_compile"))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a if "key.bias" not in name)


def test_all_gpus_of_a_machine_are_used_and_no_process_that_was_started_so_starts_more(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch_command(3)[-1] == "--nproc_per_node=3"
    assert not launch_command(1)
    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    monkeypatch.setattr(run_glue, "run_command", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["run_glue.py", "--do_eval"])
    run_glue.start(SimpleNamespace(no_cuda=True))
    assert not started
    run_glue.start(SimpleNamespace(no_cuda=False))
    assert started == [[sys.executable, *launch_command(3), "run_glue.py", "--do_eval"]]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert not launch_command(3)


def test_weights_saved_in_half_precision_are_trained_in_float32(tmp_path, mrpc):
    folder = save_bert(tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    save_file({n: w.bfloat16() for n, w in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    run_here(*arguments("mrpc", folder, mrpc, tmp_path / "s", "--do_train", "--max_steps", 1, "--replacing_rate", 1))
    assert {w.dtype for w in load_file(tmp_path / "s" / "model.safetensors").values()} == {torch.float32}
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "s").dtype == torch.float32


def test_float32_weights_are_not_rounded_to_the_config_s_precision(mrpc, tmp_path):
    folder = save_bert(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    run_here(*arguments("mrpc", folder, mrpc, tmp_path / "s", "--do_train", "--max_steps", 1, "--replacing_rate", 1))
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "s" / "model.safetensors")
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_label2id_names_the_outputs_where_id2label_does_not(tmp_path):
    folder = save_bert(tmp_path / "model", num_labels=3)
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    config["label2id"] = {"entailment": 0, "neutral": 1, "contradiction": 2}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_classifier(str(folder), TASKS["mnli"].labels, max_seq_length=32)
    assert loaded.label_order == [2, 0, 1]
    assert loaded.model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_a_roberta_is_fed_no_more_tokens_than_it_has_positions_for(capsys, mrpc, tmp_path):
    folder = save_roberta(tmp_path / "model")  # 66 positions, of which the first two are never used
    flags = ["--do_train", "--max_steps", 1]
    refused = arguments("mrpc", folder, mrpc, tmp_path / "s", *flags, "--max_seq_length", 65)
    assert_refused(capsys, tmp_path, refused, "takes at most 64 tokens")
    data = write_glue(tmp_path / "long", "mrpc", n_train=8)
    text = (data / "train.tsv").read_text()
    (data / "train.tsv").write_text(text.replace("the", "the " * 40))
    run_here(*arguments("mrpc", folder, data, tmp_path / "s", *flags, "--max_seq_length", 64))


@pytest.mark.parametrize(("flag", "lowered"), [(True, True), (False, False)])
def test_the_saved_tokenizer_lower_cases_as_told_or_as_it_was(tmp_path, mrpc, flag, lowered):
    folder = save_bert(tmp_path / "cased")
    AutoTokenizer.from_pretrained(folder, do_lower_case=False).save_pretrained(folder)
    more = ["--do_lower_case"] if flag else []
    run_here(
        *arguments("mrpc", folder, mrpc, tmp_path / "s", "--do_train", "--max_steps", 1, "--replacing_rate", 1, *more)
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "s").tokenize("Good") == (["good"] if lowered else ["Good"])


def test_overwriting_replaces_the_earlier_run_and_touches_nothing_else(bert_folder, mrpc, tmp_path):
    output = tmp_path / "output"
    run_here(*arguments("mrpc", bert_folder, mrpc, output, "--do_train", "--max_steps", 4, "--save_steps", 2))
    (output / "notes.txt").write_text("mine")
    (output / "checkpoint-mine").mkdir()
    (output / "checkpoint-mine" / "precious").write_text("mine")
    (output / "checkpoint-notes.txt").write_text("mine")
    flags = "--do_train --do_eval --max_steps 2 --save_steps 1 --overwrite_output_dir".split()
    run_here(*arguments("mrpc", bert_folder, mrpc, output, *flags, "--replacing_rate", 1))
    mine = ["checkpoint-mine", "checkpoint-notes.txt"]
    assert sorted(p.name for p in output.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2", *mine]
    assert (output / "README.md").is_file() and (output / "checkpoint-mine" / "precious").is_file()
    run_here(*arguments("mrpc", bert_folder, mrpc, output, *flags))
    assert not (output / "README.md").exists()  # the card was the successor's
    assert len(list(output.glob("runs/*"))) == 1 and (output / "notes.txt").read_text() == "mine"


def test_a_predecessor_no_better_than_chance_is_warned_about(mrpc, tmp_path, caplog):
    folder = save_bert(tmp_path / "model", num_labels=2)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = torch.tensor([100.0, 0.0])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    run_here(
        *arguments(
            "mrpc", folder, mrpc, tmp_path / "s", "--do_train", "--do_eval", "--max_steps", 1, "--replacing_rate", 1
        )
    )
    assert any("no better than chance" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        ("--replacing_rate 0.5 --scheduler_type linear --scheduler_linear_k 0", "--scheduler_linear_k is 0"),
        ("--replacing_rate 0.5 --scheduler_type linear --scheduler_linear_k 0.1 --steps_for_replacing 3", "is ignored"),
        ("--replacing_rate 0.5 --scheduler_linear_k 0.1 --steps_for_replacing 3", "is ignored"),
        ("--fp16_opt_level O2", "--fp16_opt_level is ignored"),
    ],
)
def test_flags_that_do_less_than_they_seem_to_are_warned_about(caplog, flags, warning):
    run_glue.warn_about(run_glue.parse_args(arguments("mrpc", "m", "d", "o", "--do_train", *flags.split())))
    assert [warning in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("flags", "is_told"),
    [
        ("--replacing_rate 0.5", True),
        ("--replacing_rate 0.5 --scheduler_type linear --scheduler_linear_k 0.5", True),
        ("--replacing_rate 0.5 --steps_for_replacing 2", False),
        ("--replacing_rate 1", False),
    ],
)
def test_a_rate_below_1_in_the_first_step_alone_is_warned_about(bert_folder, mrpc, tmp_path, caplog, flags, is_told):
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "o", "--do_train", "--max_steps", 3, *flags.split()))
    assert any("Only the first step has a replacing rate below 1" in r.message for r in caplog.records) == is_told
    replaced = "compressed from a fine-tuned model by progressive module replacing"
    assert (replaced in (tmp_path / "o" / "README.md").read_text()) == (flags != "--replacing_rate 1")


# ----------------------------------------------------------------------------- bad input


def contents(folder: Path) -> dict[Path, int]:
    """All that is in a folder, with the times at which files were written."""
    return {p: p.stat().st_mtime_ns if p.is_file() else 0 for p in folder.rglob("*")}


def assert_refused(capsys, tmp_path: Path, args: list, reason: str) -> None:
    """Refused by one line that gives the reason, with nothing written under tmp_path."""
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_here(*args)
    message = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err
    assert reason in message and message.startswith("run_glue.py: error: ") and "\n" not in message.rstrip("\n")
    assert contents(tmp_path) == before


TRAIN = ["--do_train", "--max_steps", 1]
COMPRESS = [*TRAIN, "--replacing_rate", 0.5, "--steps_for_replacing", 1]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--task_name", "snli", *TRAIN], "--task_name: there is no task 'snli'; there are cola, sst-2"),
        (["--task_name", "ax", *TRAIN], "--task_name: ax has no labels; the model of mnli predicts it"),
        ([], "nothing to do"),
        (["--do_train", "--scheduler_type", "linear"], "--scheduler_type is for compression: give"),
        (["--do_train", "--scheduler_linear_k", 0.1], "--scheduler_linear_k is for compression"),
        (["--do_train", "--steps_for_replacing", 10], "--steps_for_replacing is for compression"),
        (["--do_train", "--scc_n_layer", 2], "--scc_n_layer is for compression"),
        ([*TRAIN, "--replacing_rate", 0], "a probability in (0, 1], not 0"),
        ([*TRAIN, "--replacing_rate", 1.5], "a probability in (0, 1], not 1.5"),
        ([*TRAIN, "--replacing_rate", "nan"], "a probability in (0, 1], not nan"),
        ([*COMPRESS, "--scc_n_layer", 3], "4 layers do not make 3 equal modules: scc_n_layer can be 1, 2, 4"),
        (["--do_train", "--learning_rate", "nan"], "--learning_rate: nan is not a finite number"),
        (["--do_train", "--per_gpu_train_batch_size", 0], "train_batch_size: 0 is not at least 1"),
        (["--do_train", "--gradient_accumulation_steps", 99], "--gradient_accumulation_steps 99: 20 rows make fewer"),
        ([*TRAIN, "--max_seq_length", 100], "takes at most 66 tokens, not a max_seq_length of 100"),
        ([*TRAIN, "--seed", 2**32], "--seed 4294967296 is not below 2**32"),
        ([*TRAIN, "--fp16"], "--fp16 needs a GPU"),
        ([*TRAIN, "--tf32"], "--tf32 needs a GPU"),
        ([*TRAIN, "--no_such_flag"], "unrecognized arguments: --no_such_flag"),
    ],
)  # fmt: skip
def test_a_bad_flag_is_refused_in_one_line(capsys, bert_folder, mrpc, tmp_path, flags, reason):
    assert_refused(capsys, tmp_path, arguments("mrpc", bert_folder, mrpc, tmp_path / "output", *flags), reason)


def test_a_predecessor_that_is_missing_or_no_model_is_refused(capsys, mrpc, tmp_path):
    def refused(model, reason):
        assert_refused(capsys, tmp_path, arguments("mrpc", model, mrpc, tmp_path / "output", *COMPRESS), reason)

    refused(tmp_path / "nowhere", "nowhere: no such folder")
    refused("./nowhere", "./nowhere: no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "is no model: it holds no config.json")
    no_weights = save_bert(tmp_path / "no_weights")
    (no_weights / "model.safetensors").unlink()
    refused(no_weights, "no model could be loaded")
    broken = save_bert(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    refused(broken, "no model could be loaded")
    no_json = save_bert(tmp_path / "no_json")
    (no_json / "config.json").write_text("{")
    refused(no_json, "no config could be loaded")


def test_a_checkpoint_of_the_2020_release_is_refused_and_the_script_that_converts_it_named(capsys, mrpc, tmp_path):
    folder = save_bert(tmp_path / "release")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    extra = {n.replace(".layer.", ".scc_layer."): w for n, w in weights.items() if ".layer.0." in n or ".layer.1." in n}
    torch.save(weights | extra, folder / "pytorch_model.bin")
    assert_refused(
        capsys,
        tmp_path,
        arguments("mrpc", folder, mrpc, tmp_path / "output", *COMPRESS),
        "scripts/convert_to_hf_ckpt.py",
    )
    data = write_glue(tmp_path / "MNLI", "mnli")  # with another number of labels too
    refused = arguments("mnli", folder, data, tmp_path / "output", *COMPRESS)
    assert_refused(capsys, tmp_path, refused, "scripts/convert_to_hf_ckpt.py")


def test_a_model_without_its_words_or_some_of_its_weights_is_refused(capsys, mrpc, tmp_path):
    def refused(model, reason, *more):
        assert_refused(capsys, tmp_path, arguments("mrpc", model, mrpc, tmp_path / "out", *TRAIN, *more), reason)

    no_words = save_bert(tmp_path / "no_words")
    for path in list(no_words.iterdir()):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    refused(no_words, "tokenizer")
    refused(no_words, "no such folder", "--tokenizer_name", tmp_path / "nowhere")
    other = save_bert(tmp_path / "other_version")
    (other / "tokenizer.json").write_text('{"version": "9.9", "model": {"type": "New"}}')
    refused(other, "tokenizer")
    fewer = save_bert(tmp_path / "fewer", n_layer=2)
    config = json.loads((fewer / "config.json").read_text())
    (fewer / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    refused(fewer, "its weights are not those that its config calls for: bert.encoder.layer.2.")
    refused(fewer, "its weights are not those that its config calls for", "--replacing_rate", 1)
    wide = save_bert(tmp_path / "wide", hidden_size=64)
    refused(save_bert(tmp_path / "model"), "its weights are not those", "--config_name", wide)


def test_flags_about_loading_are_about_the_model_to_start_from(bert_folder, mrpc, tmp_path):
    flags = [*TRAIN, "--do_eval", "--eval_all_checkpoints", "--save_steps", 1, "--config_name", bert_folder]
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "s", *flags, "--replacing_rate", 1))
    assert "acc_1" in read_results(tmp_path / "s")
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "s", "--do_eval", "--config_name", bert_folder))


def test_a_model_to_compress_needs_a_head_for_the_task(capsys, mrpc, tmp_path):
    headless = save_bert(tmp_path / "headless")
    BertModel(BertConfig.from_pretrained(headless)).save_pretrained(headless)
    assert_refused(capsys, tmp_path, arguments("mrpc", headless, mrpc, tmp_path / "o", *COMPRESS), "has no task head")
    three = save_bert(tmp_path / "three", num_labels=3)
    reason = "its task head has 3 outputs, the task needs 2"
    assert_refused(capsys, tmp_path, arguments("mrpc", three, mrpc, tmp_path / "o", *COMPRESS), reason)
    run_here(*arguments("mrpc", three, mrpc, tmp_path / "o", *TRAIN))  # fine-tuning makes the head anew
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "o").config.num_labels == 2


def test_an_output_folder_that_is_in_use_is_refused(capsys, bert_folder, mrpc, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert_refused(capsys, tmp_path, arguments("mrpc", bert_folder, mrpc, full, *COMPRESS), "is not empty")
    assert_refused(capsys, tmp_path, arguments("mrpc", bert_folder, mrpc, full / "notes.txt", *COMPRESS), "is a file")
    own = save_bert(tmp_path / "own")
    for output in (own, own.parent):
        args = arguments("mrpc", own, mrpc, output, *COMPRESS, "--overwrite_output_dir")
        assert_refused(capsys, tmp_path, args, "would be replaced")


def test_a_disk_too_small_for_the_checkpoints_is_refused(capsys, bert_folder, mrpc, tmp_path):
    args = arguments("mrpc", bert_folder, mrpc, tmp_path / "o", "--do_train", "--max_steps", 10**12, "--save_steps", 1)
    assert_refused(capsys, tmp_path, args, "do not fit")


def test_bad_data_is_refused_with_file_and_line(capsys, bert_folder, tmp_path):
    data = write_glue(tmp_path / "MRPC", "mrpc")
    (data / "dev.tsv").unlink()
    args = arguments("mrpc", bert_folder, data, tmp_path / "o", *COMPRESS, "--do_eval")
    assert_refused(capsys, tmp_path, args, "dev.tsv: no such file")
    with open(data / "train.tsv", "a") as file:
        file.write("1\tbroken off\n")
    assert_refused(capsys, tmp_path, args, "train.tsv:50: 2 columns; expected at least 5")


def test_as_a_command_an_error_is_one_line_on_standard_error(bert_folder, tmp_path):
    done = run_as_command(*arguments("mrpc", bert_folder, tmp_path, tmp_path / "o", *COMPRESS))
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "train.tsv: no such file" in done.stderr
    assert not list(tmp_path.iterdir())
