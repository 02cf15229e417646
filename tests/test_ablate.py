"""scripts/ablate.py: each variant differs from the method in what it says, and in nothing else."""

import json
import re
import runpy
import sys
from pathlib import Path

import ablate
import numpy as np
import pytest
import torch
import transformers
from conftest import save_bert, write_glue
from safetensors.torch import load_file
from test_run_glue import arguments, run_here
from transformers import AutoModelForSequenceClassification, BertModel

import run_glue
from bert_of_theseus import compress, export_successor
from bert_of_theseus.batches import micro_batch
from bert_of_theseus.classifier import load_classifier
from bert_of_theseus.data.features import tokenize
from bert_of_theseus.training import train_step
from glue_processors import TASKS, read_examples

ROOT = Path(__file__).parents[1]
LINEAR = "--replacing_rate 0.3 --scheduler_type linear --scheduler_linear_k 0.1".split()
STEPS = "--do_train --do_eval --max_steps 12 --logging_steps 1 --save_steps 0".split()


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data") / "MRPC", "mrpc")


def run_variant(variant: list, *args: object) -> None:
    args = ablate.parse_args([str(a) for a in [*variant, *args]])
    run_glue.run_command(args, ablate.VARIANTS[args.variant])


def logged_rates(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["replacing_rate"] for line in lines if "replacing_rate" in line]


def cut(source: Path, target: Path) -> Path:
    """The first half of a model's layers as a model folder."""
    model = AutoModelForSequenceClassification.from_pretrained(source)
    compress(model)
    export_successor(model).save_pretrained(target)
    load_classifier(str(source), TASKS["mrpc"].labels, max_seq_length=32).tokenizer.save_pretrained(target)
    return target


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture
def quiet_loading(bert_folder) -> None:
    """Skips where loading draws random numbers: a larger model then leaves others for dropout and new heads."""
    before = torch.get_rng_state()
    load_classifier(str(bert_folder), TASKS["mrpc"].labels, max_seq_length=32)
    if not torch.equal(before, torch.get_rng_state()):
        pytest.skip(f"transformers {transformers.__version__} draws random numbers when it loads a model")


@pytest.mark.usefixtures("quiet_loading")
def test_all_trained_is_fine_tuning_of_the_first_layers(bert_folder, mrpc, tmp_path):
    plain = arguments("mrpc", cut(bert_folder, tmp_path / "cut"), mrpc, tmp_path / "plain", *STEPS)
    run_here(*plain)
    run_variant(["all-trained"], *arguments("mrpc", bert_folder, mrpc, tmp_path / "variant", *STEPS))
    assert_same_weights(tmp_path / "plain", tmp_path / "variant")
    record = json.loads((tmp_path / "variant" / "run.json").read_text())
    assert record["arguments"]["variant"] == "all-trained" and record["last"]["loyalty"]["label_loyalty"] <= 1
    assert record["predecessor"]["parameters"] > record["parameters"]


@pytest.mark.usefixtures("quiet_loading")
def test_pretrained_layers_is_fine_tuning_of_the_pretrained_model_s_with_a_new_head(bert_folder, mrpc, tmp_path):
    base = save_bert(tmp_path / "base")  # other weights, and no head
    model = BertModel.from_pretrained(base)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    model.save_pretrained(base)
    half = tmp_path / "half"
    model.encoder.layer = model.encoder.layer[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(half)
    load_classifier(str(base), TASKS["mrpc"].labels, True, max_seq_length=32).tokenizer.save_pretrained(half)
    run_here(*arguments("mrpc", half, mrpc, tmp_path / "plain", *STEPS))
    variant = ["pretrained-layers", "--pretrained_model", base]
    run_variant(variant, *arguments("mrpc", bert_folder, mrpc, tmp_path / "variant", *STEPS))
    assert_same_weights(tmp_path / "plain", tmp_path / "variant")
    other = save_bert(tmp_path / "other", n_layer=2)
    with pytest.raises(SystemExit, match="not what the predecessor was made of"):
        variant = ["pretrained-layers", "--pretrained_model", other]
        run_variant(variant, *arguments("mrpc", bert_folder, mrpc, tmp_path / "no", *STEPS))


def test_the_rate_of_anti_curriculum_is_one_less_that_of_the_linear_schedule(bert_folder, mrpc, tmp_path):
    run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "linear", *STEPS, *LINEAR))
    run_variant(["anti-curriculum"], *arguments("mrpc", bert_folder, mrpc, tmp_path / "anti", *STEPS, *LINEAR))
    rates = logged_rates(tmp_path / "linear")
    assert logged_rates(tmp_path / "anti") == pytest.approx([1 - rate for rate in rates]) and rates[-1] == 1
    lines = [json.loads(line) for line in (tmp_path / "anti" / "log.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "loss" in line and line["replacing_rate"] < 1e-9]  # nothing is drawn
    assert "falling linearly, by 0.1 a step, from 0.7 to 0 at the end" in (tmp_path / "anti" / "README.md").read_text()


def test_distilled_learns_from_the_predecessor_s_logits_as_well(bert_folder, mrpc, tmp_path):
    run_variant(["all-trained"], *arguments("mrpc", bert_folder, mrpc, tmp_path / "labels", *STEPS))
    run_variant(["distilled"], *arguments("mrpc", bert_folder, mrpc, tmp_path / "both", *STEPS))
    losses = []
    for name in ("labels", "both"):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses.append(next(line["loss"] for line in lines if "loss" in line))
    assert losses[0] != losses[1]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "labels"))
    assert ours.keys() == theirs.keys() and any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_loss_of_distillation_is_hinton_s(bert_folder, mrpc, tmp_path):
    logits, theirs = torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.tensor([[2.0, 0.0], [0.5, 1.0]])
    p, q = (torch.softmax(of / 2, dim=1) for of in (theirs, logits))
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    assert ablate.distillation_loss(logits, theirs).item() == pytest.approx(expected.item(), abs=1e-6)
    scores = torch.tensor([[1.0], [4.0]])
    assert ablate.distillation_loss(scores, scores + 2).item() == 4
    args, state, ((tensors, _), *_) = new_state(bert_folder, mrpc, tmp_path)
    ablate.distilled(args, state)
    state.layers.set_replacing_rate(1.0)
    predecessor = AutoModelForSequenceClassification.from_pretrained(bert_folder).eval()
    theirs = predecessor(**tensors)
    torch.manual_seed(3)
    output = state.model(**tensors)
    labels = torch.nn.functional.cross_entropy(output.logits, tensors["labels"])
    expected = (labels + ablate.distillation_loss(output.logits, theirs.logits)) / 2
    torch.manual_seed(3)
    assert state.loss_of(state.model, tensors).item() == pytest.approx(expected.item(), rel=1e-6)


def new_state(bert_folder: Path, mrpc: Path, tmp_path: Path, *more: object) -> tuple:
    """The arguments of a run, its state before the first step, and a batch to train with."""
    args = run_glue.parse_args(arguments("mrpc", bert_folder, mrpc, tmp_path, "--do_train", *LINEAR, *more))
    classifier = load_classifier(str(bert_folder), TASKS["mrpc"].labels, max_seq_length=32)
    features = tokenize(read_examples(TASKS["mrpc"], mrpc, "dev"), classifier.tokenizer, 32, True)
    state = run_glue.new_state(args, classifier.model.train(), 10)
    return args, state, micro_batch(features, np.arange(8), torch.device("cpu"))


@pytest.mark.parametrize("variant", ["missing-gradients", None])
def test_where_gradients_are_missing_a_layer_that_is_not_drawn_stays(bert_folder, mrpc, tmp_path, variant):
    args, state, batch = new_state(bert_folder, mrpc, tmp_path)
    if variant:
        ablate.VARIANTS[variant](args, state)
    moved = []
    for draw in ([True, False], [False, True]):
        before = [p.clone() for p in state.layers.successor[0].parameters()]
        state.layers.draw_replacements = lambda draw=draw: draw
        train_step(state, [batch])
        after = state.layers.successor[0].parameters()
        moved.append(any(not torch.equal(p, q) for p, q in zip(before, after, strict=True)))
    assert moved == [True, variant is None]


def test_every_second_layer_starts_from_the_first_layer_of_each_module(bert_folder, mrpc, tmp_path):
    args, state, _ = new_state(bert_folder, mrpc, tmp_path)
    ablate.every_second_layer(args, state)
    layers = state.layers
    for ours, source in zip(layers.successor, (layers.predecessor[0], layers.predecessor[2]), strict=True):
        for p, q in zip(ours.parameters(), source.parameters(), strict=True):
            assert torch.equal(p, q) and p.requires_grad and not q.requires_grad


def test_the_plan_is_that_of_the_variant(bert_folder, mrpc, tmp_path, caplog):
    caplog.set_level("INFO")
    steps = arguments("mrpc", bert_folder, mrpc, tmp_path / "plain", "--do_train", "--max_steps", 8, "--save_steps", 0)
    run_here(*steps, *LINEAR)
    run_variant(["anti-curriculum"], *steps, *LINEAR, "--output_dir", tmp_path / "anti")
    run_variant(["all-trained"], *steps, "--output_dir", tmp_path / "all")
    late = ["--max_steps", 11, "--scheduler_linear_k", 0.07, "--output_dir", tmp_path / "late"]
    run_here(*steps, *LINEAR, *late)
    assert caplog.text.count("trains alone in 1 of the 11 steps") == 1
    plain, fallen, trained = (
        "\n".join(part.splitlines()) for part in re.split(r"The successor is in \S+", caplog.text)[:3]
    )
    assert "linearly, by 0.1 a step, from 0.3 to 1 at step 8" in plain
    assert "trains alone in" not in plain  # one step of eight, which is a tenth at least
    assert "from 0.7 to 0 at the end" in fallen and "trains alone in 0 of the 8 steps" in fallen
    assert "1 in all steps" in trained
    state_sizes = [int(re.search(r"(\d+) kB of state", text)[1]) for text in (plain, trained)]
    assert state_sizes[1] > state_sizes[0]  # embeddings and head have moments too


@pytest.mark.parametrize(("variant", "schedule"), [("all-trained", []), ("anti-curriculum", LINEAR)])
def test_a_variant_is_resumed_as_if_nothing_had_happened(bert_folder, mrpc, tmp_path, monkeypatch, variant, schedule):
    steps = [*STEPS, "--save_steps", 5, *schedule]
    run_variant([variant], *arguments("mrpc", bert_folder, mrpc, tmp_path / "whole", *steps))
    command = arguments("mrpc", bert_folder, mrpc, tmp_path / "cut", *steps, "--resume")
    true_step, made = run_glue.train_step, []

    def fail_after_seven(*args):
        made.append(args)
        if len(made) > 7:
            raise KeyboardInterrupt
        return true_step(*args)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(run_glue, "train_step", fail_after_seven)
        run_variant([variant], *command)
    run_variant([variant], *command)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "cut")]
    assert [part["after_step"] for part in records[1]["resumed"]] == [5]
    assert records[0]["last"]["loyalty"] == records[1]["last"]["loyalty"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing"], "invalid choice"),
        (["anti-curriculum"], "--replacing_rate"),
        (["anti-curriculum", "--replacing_rate", "0.5"], "--scheduler_type linear"),
        (["pretrained-layers"], "--pretrained_model"),
        (["all-trained", "--replacing_rate", "0.5"], "replaces nothing"),
        (["all-trained", "--scheduler_type", "linear"], "--scheduler_type is not for all-trained"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, args, message):
    with pytest.raises(SystemExit) as end:
        ablate.parse_args([*args, *arguments("mrpc", "m", "d", "o", "--do_train")])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_as_a_command_it_says_which_variant_it_makes(bert_folder, mrpc, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    words = arguments("mrpc", bert_folder, mrpc, tmp_path / "out", "--do_train", "--max_steps", 1, *LINEAR)
    monkeypatch.setattr(sys, "argv", ["ablate.py", "every-second-layer", *words])
    runpy.run_path(str(ROOT / "scripts" / "ablate.py"), run_name="__main__")
    assert "Variant      every-second-layer: Each successor layer starts" in caplog.text


def test_a_variant_of_one_s_own_is_named_in_its_record_and_card(bert_folder, mrpc, tmp_path):
    def at_once(args, state) -> None:
        """The rate is 1 from the first step on."""
        state.rate_schedule = run_glue.ConstantReplacementScheduler(state.layers, 1.0)

    args = arguments("mrpc", bert_folder, mrpc, tmp_path / "out", *STEPS, *LINEAR)
    run_glue.run_command(run_glue.parse_args([str(a) for a in args]), at_once)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["variant"] == "at-once"
    assert "(variant at-once of the method)" in (tmp_path / "out" / "README.md").read_text()


def test_a_variant_does_not_resume_a_run_of_the_method_nor_the_other_way_round(bert_folder, mrpc, tmp_path):
    command = arguments("mrpc", bert_folder, mrpc, tmp_path / "out", *STEPS, *LINEAR, "--resume")
    run_here(*command)
    with pytest.raises(SystemExit, match="the variant was None, is anti-curriculum"):
        run_variant(["anti-curriculum"], *command)
    run_variant(["anti-curriculum"], *arguments("mrpc", bert_folder, mrpc, tmp_path / "anti", *STEPS, *LINEAR))
    with pytest.raises(SystemExit, match="the variant was anti-curriculum, is None"):
        run_here(*arguments("mrpc", bert_folder, mrpc, tmp_path / "anti", *STEPS, *LINEAR, "--resume"))
    assert "anti-curriculum" in (tmp_path / "anti" / "README.md").read_text()
