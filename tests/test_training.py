import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_bert
from test_batches import features_of
from transformers import AlbertConfig, AlbertForSequenceClassification, AutoModelForSequenceClassification

from bert_of_theseus import compress
from bert_of_theseus.batches import micro_batch
from bert_of_theseus.training import LossError, TrainState, compile_layers, optimizer_groups, train_step
from replacement_scheduler import LinearReplacementScheduler

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_state(
    folder: Path, compressing: bool = True, sgd: float | None = None, fp16: bool = False, **config
) -> TrainState:
    """What moves when a model of this folder is trained: by AdamW with 1e-3, or by SGD with another rate."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **config).train()
    layers = compress(model, seed=3) if compressing else None
    groups = optimizer_groups(model, 0.0)
    optimizer = torch.optim.AdamW(groups, 1e-3, fused=True) if sgd is None else torch.optim.SGD(groups, sgd)
    lr_schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    rate_schedule = LinearReplacementScheduler(layers, 0.4, 0.01) if layers else None
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=fp16)
    return TrainState(model, layers, optimizer, lr_schedule, rate_schedule, scaler, n_steps=100)


BATCH = {"input_ids": torch.full((2, 5), 6), "labels": torch.tensor([0, 1])}


def test_an_undrawn_layer_moves_on_its_momentum_once_it_was_drawn_and_not_before(bert_folder):
    state = make_state(bert_folder)
    draws = iter([[False, False], [True, False], [False, True], [False, False]])
    state.layers.draw_replacements = lambda: next(draws)

    def moved() -> tuple[bool, bool, bool]:
        before = [p.detach().clone() for p in state.layers.successor.parameters()]
        loss = train_step(state, [[(BATCH, 1.0)]])
        changed = [not torch.equal(p, q) for p, q in zip(state.layers.successor.parameters(), before, strict=True)]
        half = len(changed) // 2
        return loss is not None, any(changed[:half]), any(changed[half:])

    assert moved() == (False, False, False)  # nothing is drawn, and nothing has momentum
    assert moved() == (True, True, False)
    assert moved() == (True, True, True)  # the first layer moves on its momentum
    assert moved() == (False, True, True)
    assert state.step == 4


@pytest.mark.parametrize("compressing", [False, True])
def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(bert_folder, compressing):
    weights = []
    for n_parts in (1, 4):
        state = make_state(bert_folder, compressing, sgd=0.1, **NO_DROPOUT)
        if compressing:
            state.layers.draw_replacements = lambda: [True, False]
        ids, labels = torch.arange(5, 21).reshape(8, 2), torch.tensor([0, 1] * 4)
        parts = [
            [({"input_ids": i, "labels": label}, 1.0)]
            for i, label in zip(ids.chunk(n_parts), labels.chunk(n_parts), strict=True)
        ]
        train_step(state, parts, max_grad_norm=1e9)
        weights.append([p.detach() for p in state.model.parameters()])
    for whole, accumulated in zip(*weights, strict=True):
        torch.testing.assert_close(whole, accumulated, atol=1e-6, rtol=0)


def test_gradients_in_float16_are_clipped_by_their_own_size(bert_folder):
    weights = []
    for fp16 in (False, True):
        state = make_state(bert_folder, sgd=0.1, fp16=fp16, **NO_DROPOUT)
        state.layers.draw_replacements = lambda: [True, True]
        train_step(state, [[(BATCH, 1.0)]], max_grad_norm=1e-2)
        weights.append([p.detach() for p in state.layers.successor.parameters()])
    for plain, scaled in zip(*weights, strict=True):
        torch.testing.assert_close(scaled, plain, atol=1e-7, rtol=0)


def test_each_micro_batch_has_a_draw_of_its_own(bert_folder):
    state, paths = make_state(bert_folder, sgd=0.1), []
    other = make_state(bert_folder)
    expected = [other.layers.draw_replacements() for _ in range(8)]
    state.layers.successor[0].register_forward_hook(lambda *_: paths.append("first"))
    train_step(state, [[(BATCH, 1.0)]] * 8)
    assert len(paths) == sum(draw[0] for draw in expected) and 0 < len(paths) < 8
    state.layers.set_replacing_rate(0.4)
    assert state.layers.draw_replacements() == other.layers.draw_replacements()  # both have drawn as often


@pytest.mark.parametrize("num_labels", [2, 1])
def test_a_batch_in_parts_has_the_gradient_and_the_loss_of_the_whole(tmp_path, num_labels):
    folder = save_bert(tmp_path / "model", num_labels=num_labels, **NO_DROPOUT)
    lengths = [3, 30, 4, 29, 5, 6, 28]
    labels = np.arange(7) % 2 if num_labels == 2 else np.linspace(0, 5, 7, dtype=np.float32)
    features, rows = features_of(lengths, labels), np.array([6, 0, 1, 3, 4, 2, 5])
    state = make_state(folder, sgd=0.1)
    parts = micro_batch(features, rows, torch.device("cpu"))
    assert len(parts) > 1 and sum(share for _, share in parts) == pytest.approx(1)
    before = [p.detach().clone() for p in state.layers.successor.parameters()]
    state.layers.draw_replacements = lambda: [True, False]
    moved, losses = [], []
    for batch in ([(features.batch(rows), 1.0)], parts):
        losses.append(train_step(state, [batch], max_grad_norm=1e9).item())
        with torch.no_grad():
            moved.append([p - q for p, q in zip(state.layers.successor.parameters(), before, strict=True)])
            for p, q in zip(state.layers.successor.parameters(), before, strict=True):
                p.copy_(q)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert max(m.abs().max() for m in moved[0]) > 1e-3
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


def test_a_micro_batch_without_a_drawn_module_is_not_run_and_counts_in_no_loss(bert_folder):
    state, runs = make_state(bert_folder, sgd=0.1, **NO_DROPOUT), []
    state.model.register_forward_hook(lambda *_: runs.append(1))
    draws = iter([[False, False], [True, True]])
    state.layers.draw_replacements = lambda: next(draws)
    loss = train_step(state, [[(BATCH, 1.0)]] * 2)
    assert len(runs) == 1
    other = make_state(bert_folder, **NO_DROPOUT)
    other.layers.fix_draw([True, True])
    assert loss.item() == pytest.approx(other.model(**BATCH).loss.item(), abs=1e-6)


def test_an_overflow_in_float16_skips_the_update_and_counts_as_a_step(bert_folder):
    state = make_state(bert_folder, fp16=True)
    draws = iter([[False, False], [True, True], [True, True], [False, False]])
    state.layers.draw_replacements = lambda: next(draws)
    # The classifier's input is what overflows, as in float16.
    overflows = iter([True, False])
    state.model.bert.pooler.register_forward_hook(lambda _, __, out: out * 1e38 if next(overflows) else out)

    def moves() -> bool:
        before = [p.detach().clone() for p in state.layers.successor.parameters()]
        train_step(state, [[(BATCH, 1.0)]])
        return any(not torch.equal(p, q) for p, q in zip(state.layers.successor.parameters(), before, strict=True))

    assert not moves()  # nothing drawn yet, and no gradient to unscale
    assert state.scaler.get_scale() == 64.0
    assert not moves()  # the scaled gradients are not finite
    assert state.scaler.get_scale() == 32.0 and state.lr_schedule.last_epoch == 2
    assert moves()
    state.check_weights()
    assert moves() and state.step == 4  # on momentum


# ---------------------------------------------------------------------------------------- state


def saved_and_loaded(state: TrainState, again: TrainState, path: Path) -> None:
    """Load what `state` saves, from a file that can hold no code, into a new one."""
    torch.save([state.state_dict(), state.own_state_dict()], path)
    again.load_state_dict(*torch.load(path, weights_only=True))


def test_a_loaded_state_continues_to_the_bit(encoder_folder, tmp_path):
    torch.manual_seed(5)
    state = make_state(encoder_folder)  # with dropout
    draws = iter([[True, False], [False, False]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state.layers, "draw_replacements", lambda: next(draws))
        for _ in range(2):  # one layer has momentum, the other has not been drawn
            train_step(state, [[(BATCH, 1.0)]])
    gradients = {name: p.grad is None for name, p in state.trained().items()}
    assert set(gradients.values()) == {True, False}

    again = make_state(encoder_folder)
    torch.save([state.state_dict(), state.own_state_dict()], tmp_path / "state.pt")
    expected = [train_step(state, [[(BATCH, 1.0)]]) for _ in range(6)]
    again.load_state_dict(*torch.load(tmp_path / "state.pt", weights_only=True))
    assert {name: p.grad is None for name, p in again.trained().items()} == gradients
    assert [train_step(again, [[(BATCH, 1.0)]]) for _ in range(6)] == expected
    for ours, theirs in zip(again.model.parameters(), state.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert again.rates() == state.rates() and again.step == 8
    assert again.take_mean_loss() == state.take_mean_loss()


def test_in_float16_a_resumed_run_can_start_with_a_step_that_draws_no_module(bert_folder, tmp_path):
    state = make_state(bert_folder, fp16=True)
    state.layers.draw_replacements = lambda: [True, True]
    train_step(state, [[(BATCH, 1.0)]])
    again = make_state(bert_folder, fp16=True)
    saved_and_loaded(state, again, tmp_path / "state.pt")
    draws = iter([[False, False], [True, True]])
    again.layers.draw_replacements = lambda: next(draws)
    before = [p.detach().clone() for p in again.trained().values()]
    assert train_step(again, [[(BATCH, 1.0)]]) is None
    assert any(not torch.equal(p, q) for p, q in zip(again.trained().values(), before, strict=True))  # by momentum
    assert train_step(again, [[(BATCH, 1.0)]]) is not None and again.scaler.get_scale() == 64.0


def test_the_mean_loss_is_over_the_steps_that_had_one(bert_folder):
    state = make_state(bert_folder)
    draws = iter([[True, True], [False, False], [False, True], [False, False]])
    state.layers.draw_replacements = lambda: next(draws)
    losses = [train_step(state, [[(BATCH, 1.0)]]) for _ in range(3)]
    assert losses[1] is None
    assert state.take_mean_loss() == pytest.approx((losses[0].item() + losses[2].item()) / 2)
    train_step(state, [[(BATCH, 1.0)]])
    assert state.take_mean_loss() is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_and_trained_weights_that_are_no_numbers_are_found(bert_folder, value):
    state = make_state(bert_folder)
    state.layers.draw_replacements = lambda: [True, True]
    train_step(state, [[(BATCH, 1.0)]])
    state.model.classifier.bias.data[0] = value  # a frozen weight
    state.check_losses()
    state.check_weights()
    train_step(state, [[(BATCH, 1.0)]])
    with pytest.raises(LossError, match="the loss is not a finite number at or shortly before step 2"):
        state.check_losses()
    state.layers.successor[0].attention.self.key.bias.data[3] = value
    with pytest.raises(LossError, match="after step 2 some weights are not finite numbers"):
        state.check_weights()


def test_a_model_without_one_list_of_layers_is_not_compiled(bert_folder):
    config = AlbertConfig(num_hidden_layers=4, vocab_size=40, hidden_size=16, num_attention_heads=2)
    with pytest.raises(ValueError, match="should hold one list of 4 equal layers"):
        compile_layers(AlbertForSequenceClassification(config))
