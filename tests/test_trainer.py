"""ReplacementCallback: the Trainer of transformers compresses as the project's own loop does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SIZES, save_bert, tiny_batch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    get_constant_schedule,
)

from bert_of_theseus import ReplacementCallback, compress, export_successor
from bert_of_theseus.training import TrainState, optimizer_groups, train_step
from replacement_scheduler import ConstantReplacementScheduler, LinearReplacementScheduler

ROWS = [{name: tensor[i] for name, tensor in tiny_batch(n_rows=24).items()} for i in range(24)]


def predecessor(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=40, num_hidden_layers=4, initializer_range=0.2, **SIZES, **dropouts)
    return BertForSequenceClassification(config)


def arguments(folder, **settings) -> TrainingArguments:
    """For 10 steps on the CPU, with no report; `optim` and the like as in the own loop."""
    settings = {"max_steps": 10, "learning_rate": 1e-3, "weight_decay": 0.1, "logging_steps": 1} | settings
    settings |= {"lr_scheduler_type": "constant", "optim": "adamw_torch", "save_strategy": "steps"}
    settings = {"per_device_train_batch_size": 4, "save_steps": 100, "report_to": "none"} | settings
    return TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **settings)


def linear(model: nn.Module) -> LinearReplacementScheduler:
    return LinearReplacementScheduler(compress(model), 0.3, 0.03)


def trainer_of(model: nn.Module, args: TrainingArguments, schedule=linear, **more) -> Trainer:
    return Trainer(model, args, train_dataset=ROWS, callbacks=[ReplacementCallback(schedule(model))], **more)


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def own_loop(model: nn.Module, batches: list[dict], accumulation: int) -> list:
    """The losses of the steps; None where no module was drawn."""
    schedule = linear(model)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.1), lr=1e-3, eps=1e-4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    n_steps = len(batches) // accumulation
    state = TrainState(
        model.train(), schedule.layers, optimizer, get_constant_schedule(optimizer), schedule, scaler, n_steps
    )
    steps = [batches[i * accumulation : (i + 1) * accumulation] for i in range(n_steps)]
    return [train_step(state, [[(batch, 1.0)] for batch in step]) for step in steps]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_s_weights_are_those_of_the_own_loop(tmp_path, accumulation):
    batches = []

    def collate(rows):
        batches.append(default_data_collator(rows))
        return batches[-1]

    model, twin = predecessor(), predecessor()
    # Adam's usual epsilon would make steps of rounding errors: the gradient of a key's bias is zero in theory.
    args = arguments(tmp_path, max_steps=30, gradient_accumulation_steps=accumulation, adam_epsilon=1e-4)
    trainer = trainer_of(model, args, data_collator=collate)
    trainer.model_accepts_loss_kwargs = False  # BERT takes them and leaves them, and the mean would become a sum
    trainer.train()
    losses = own_loop(twin, batches[: 30 * accumulation], accumulation)
    first = next(i for i, loss in enumerate(losses) if loss is not None)
    assert None in losses[first:]  # steps on the momentum alone
    ours = trained(model)
    for name, theirs in trained(twin).items():
        assert torch.allclose(ours[name], theirs, rtol=0, atol=1e-6), name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, with dropout, in random order, with checkpoints and evaluations."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = AutoTokenizer.from_pretrained(save_bert(folder / "tokenizer"))
    args = arguments(folder / "out", save_steps=3, save_total_limit=3, eval_strategy="steps", eval_steps=5)
    model = predecessor(dropout=0.1)
    trainer = trainer_of(model, args, eval_dataset=ROWS[:6], processing_class=tokenizer)
    trainer.train()
    return trainer, folder / "out"


def test_a_resumed_training_is_the_same_bit_for_bit(run, tmp_path):
    trainer, folder = run
    model = predecessor(dropout=0.1)
    again = trainer_of(model, arguments(tmp_path))
    again.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    for name, theirs in trained(trainer.model).items():
        assert torch.equal(trained(model)[name], theirs), name
    layers = [t.callback_handler.callbacks[1].scheduler.layers for t in (trainer, again)]
    assert torch.equal(*[its.generator.get_state() for its in layers])
    rates = [[line["replacing_rate"] for line in t.state.log_history if "loss" in line] for t in (trainer, again)]
    assert rates[0] == rates[1] == pytest.approx([0.3 + 0.03 * step for step in range(10)])


def test_each_checkpoint_holds_the_successor_and_is_rotated_with_it(run):
    trainer, folder = run
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-10", "checkpoint-6", "checkpoint-9"]
    for checkpoint in folder.iterdir():
        successor = AutoModelForSequenceClassification.from_pretrained(checkpoint / "successor")
        assert successor.config.num_hidden_layers == len(successor.bert.encoder.layer) == 2
        assert AutoTokenizer.from_pretrained(checkpoint / "successor").vocab_size == trainer.processing_class.vocab_size
    batch = tiny_batch()
    successor = AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint-10" / "successor")
    assert torch.equal(successor(**batch).logits, trainer.model.eval()(**batch).logits)


def test_an_evaluation_in_training_is_one_of_the_successor(run):
    trainer, _ = run
    logged = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    batch = default_data_collator(ROWS[:6])
    assert len(logged) == 2 and logged[-1] == pytest.approx(export_successor(trainer.model)(**batch).loss.item())
    assert not any("replacing_rate" in line for line in trainer.state.log_history if "eval_loss" in line)


def train_one_of_several(folder: str, n_rows: str) -> None:
    """What each of the processes of the next test does; the first one saves the weights."""
    settings = {"gradient_accumulation_steps": 2, "adam_epsilon": 1e-4, "per_device_train_batch_size": int(n_rows)}
    model, args = predecessor(), arguments(folder, max_steps=20, **settings)
    trainer = trainer_of(model, args)
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    if args.should_save:
        torch.save(trained(model), f"{folder}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_rows(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    for n_processes, n_rows in (1, 8), (2, 4):
        torchrun = f"-m torch.distributed.run --standalone --nproc_per_node={n_processes}".split()
        command = [sys.executable, *torchrun, __file__, str(tmp_path / f"{n_processes}"), str(n_rows)]
        subprocess.run(command, check=True, env=environment)
    one, two = (torch.load(tmp_path / f"{n_processes}.pt") for n_processes in (1, 2))
    *others, anchor = one  # the last parameter of two processes has a gradient from the first step on
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=2e-4) for name in others)
    assert torch.allclose(one[anchor], two[anchor], rtol=0, atol=2e-3)
    untrained = predecessor()
    compress(untrained)
    moved = {name: (p - one[name]).abs().max() for name, p in trained(untrained).items()}
    assert all(by > 5e-3 for name, by in moved.items() if "key.bias" not in name)  # whose gradient is zero in theory


def test_load_best_model_at_end_loads_the_successor_of_the_best_evaluation(tmp_path):
    model, successors = predecessor(), {}

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            successors[state.global_step] = trained(model)

    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    args = arguments(tmp_path, max_steps=4, learning_rate=3e-2, **every_step)
    trainer = trainer_of(model, args, eval_dataset=ROWS[:6])
    trainer.add_callback(Watch())
    trainer.train()
    losses = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    best = min(losses, key=losses.get)
    assert best != 4  # else the last step would do
    assert all(torch.equal(p, successors[best][name]) for name, p in trained(model).items())


def test_after_training_the_callback_leaves_the_model_without_its_hook(run):
    trainer, _ = run
    layers = trainer.callback_handler.callbacks[1].scheduler.layers
    assert not any(layer._forward_hooks for layer in layers.predecessor)
    layers.fix_draw([False, False])
    assert not trainer.model.train()(**tiny_batch()).loss.requires_grad
    layers.fix_draw(None)


def own_loss(outputs, labels, num_items_in_batch):
    return cross_entropy(outputs.logits, labels)


@pytest.mark.parametrize(
    "settings, more",
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 2}, {}),
        ({"gradient_accumulation_steps": 2}, {"compute_loss_func": own_loss}),
        ({"label_smoothing_factor": 0.1}, {}),
        ({"bf16": True}, {}),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, {}),
    ],
    ids=["plain", "accumulation", "own loss", "smoothing", "bf16", "checkpointing"],
)
def test_a_step_that_draws_no_module_changes_nothing_and_does_not_fail(tmp_path, settings, more):
    model = predecessor()
    trainer = trainer_of(model, arguments(tmp_path, max_steps=2, **settings), **more)
    layers = trainer.callback_handler.callbacks[1].scheduler.layers
    layers.fix_draw([False, False])
    before = trained(model)
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trained(model).items())
    layers.fix_draw([False, True])  # and where one is drawn, it alone learns
    trainer.train()
    changed = {name for name, p in trained(model).items() if not torch.equal(p, before[name])}
    assert changed and all("successor.1." in name for name in changed)


def test_the_scaler_of_float16_has_a_gradient_in_each_step(tmp_path):
    model = predecessor()
    schedule = linear(model)
    args = arguments(tmp_path)
    args.fp16 = True  # which the Trainer itself takes on a GPU alone
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)  # the frozen ones too
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))  # or it has no scale yet
    callback, state, before = ReplacementCallback(schedule), TrainerState(), trained(model)
    callback.on_train_begin(args, state, TrainerControl(), model=model, optimizer=optimizer)
    for _ in range(2):
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        callback.on_step_end(args, state, TrainerControl(), optimizer=optimizer)
    assert schedule.steps == 2 and frozen
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert all(torch.allclose(p, before[name], atol=1e-3) for name, p in trained(model).items())  # they decay


def test_a_model_of_one_s_own_around_a_compressed_one_is_trained_too(tmp_path):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = predecessor().bert
            self.head = nn.Linear(32, 2)

        def forward(self, input_ids, attention_mask, labels):
            logits = self.head(self.encoder(input_ids, attention_mask).last_hidden_state[:, 0])
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    model = Classifier()
    args = arguments(tmp_path, max_steps=2, save_steps=2)
    trainer_of(model, args, lambda model: ConstantReplacementScheduler(compress(model.encoder), 0.5)).train()
    config = json.loads((tmp_path / "checkpoint-2" / "successor" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"] and config["num_hidden_layers"] == 2


class Reporter(TrainerCallback):
    """Keeps what a reporting callback is given."""

    def on_log(self, args, state, control, logs, **kwargs):
        self.last = dict(logs) if "loss" in logs else self.last


def test_what_reports_after_the_callback_sees_the_rate(tmp_path):
    model = predecessor()
    before, after = Reporter(), Reporter()
    callbacks = [before, ReplacementCallback(linear(model)), after]
    Trainer(model, arguments(tmp_path, max_steps=2), train_dataset=ROWS, callbacks=callbacks).train()
    assert after.last == before.last | {"replacing_rate": pytest.approx(0.33)}


def test_layers_of_another_model_are_refused(tmp_path):
    model = predecessor()
    trainer = trainer_of(model, arguments(tmp_path), lambda _: linear(predecessor()))
    with pytest.raises(ValueError, match="not in the Trainer's model"):
        trainer.train()


if __name__ == "__main__":
    train_one_of_several(*sys.argv[1:])
