import math

import numpy as np
import pytest
import torch
from conftest import save_bert
from transformers import AutoModelForSequenceClassification

from bert_of_theseus import compress
from bert_of_theseus.training import (
    LossError,
    Losses,
    check_weights,
    micro_batch,
    optimizer_groups,
    padded_length,
    split_by_length,
    train_batches,
    train_step,
)
from glue_processors import Features

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_every_epoch_has_another_order_that_follows_from_the_seed():
    def epochs(seed):
        batches = train_batches(10, 4, 1, seed)
        return [np.concatenate([next(batches)[1][0] for _ in range(3)]).tolist() for _ in range(2)]

    first, second = epochs(1)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert epochs(1) == [first, second]
    assert not {tuple(order) for order in epochs(2)} & {tuple(first), tuple(second)}


def test_an_undrawn_layer_moves_on_its_momentum_once_it_was_drawn_and_not_before(bert_folder):
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    layers = compress(model.train())
    draws = iter([[False, False], [True, False], [False, True], [False, False]])
    layers.draw_replacements = lambda: next(draws)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.0), 1e-3)
    batch = {"input_ids": torch.full((2, 5), 6), "labels": torch.tensor([0, 1])}

    def moved() -> tuple[bool, bool, bool]:
        before = [p.detach().clone() for p in layers.successor.parameters()]
        loss = train_step(model, layers, [[(batch, 1.0)]], optimizer, [], 1.0, NO_SCALER)
        changed = [not torch.equal(p, q) for p, q in zip(layers.successor.parameters(), before, strict=True)]
        half = len(changed) // 2
        return loss is not None, any(changed[:half]), any(changed[half:])

    assert moved() == (False, False, False)  # nothing drawn, nothing to go on
    assert moved() == (True, True, False)
    assert moved() == (True, True, True)  # the first layer goes on by its momentum
    assert moved() == (False, True, True)


@pytest.mark.parametrize("compressing", [False, True])
def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(bert_folder, compressing):
    weights = []
    for n_parts in (1, 4):
        model = AutoModelForSequenceClassification.from_pretrained(bert_folder, **NO_DROPOUT).train()
        layers = compress(model) if compressing else None
        if compressing:
            layers.draw_replacements = lambda: [True, False]
        optimizer = torch.optim.SGD(optimizer_groups(model, 0.0), 0.1)
        ids, labels = torch.arange(5, 21).reshape(8, 2), torch.tensor([0, 1] * 4)
        parts = [
            [({"input_ids": i, "labels": label}, 1.0)]
            for i, label in zip(ids.chunk(n_parts), labels.chunk(n_parts), strict=True)
        ]
        train_step(model, layers, parts, optimizer, [], 1e9, NO_SCALER)
        weights.append([p.detach() for p in model.parameters()])
    for whole, accumulated in zip(*weights, strict=True):
        torch.testing.assert_close(whole, accumulated, atol=1e-6, rtol=0)


def test_each_micro_batch_has_a_draw_of_its_own(bert_folder):
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    layers, paths = compress(model.train(), seed=3), []
    layers.set_replacing_rate(0.5)
    draws = compress(AutoModelForSequenceClassification.from_pretrained(bert_folder), seed=3)
    draws.set_replacing_rate(0.5)
    expected = [draws.draw_replacements() for _ in range(8)]
    layers.successor[0].register_forward_hook(lambda *_: paths.append("first"))
    optimizer = torch.optim.SGD(optimizer_groups(model, 0.0), 0.1)
    batch = {"input_ids": torch.full((2, 5), 6), "labels": torch.tensor([0, 1])}
    train_step(model, layers, [[(batch, 1.0)]] * 8, optimizer, [], 1.0, NO_SCALER)
    assert len(paths) == sum(draw[0] for draw in expected) and 0 < len(paths) < 8
    assert layers.draw_replacements() == draws.draw_replacements()  # both have drawn as often


def features_of(lengths: list[int], labels=None) -> Features:
    """Random tokens in rows of these lengths, with labels that take turns."""
    ids = np.random.default_rng(0).integers(5, 20, sum(lengths)).astype(np.int32)
    labels = np.arange(len(lengths)) % 2 if labels is None else labels
    return Features(ids, np.array(lengths), np.zeros(sum(lengths), np.int8), labels)


def test_a_batch_is_cut_where_least_time_is_lost():
    lengths = np.array([10, 48, 12, 9, 46, 11, 50, 44])
    parts = split_by_length(lengths, max_tokens=1000, overhead=5)
    assert sorted(sorted(part.tolist()) for part in parts) == [[0, 2, 3, 5], [1, 4, 6, 7]]
    assert len(split_by_length(lengths, max_tokens=1000, overhead=10**6)) == 1
    assert len(split_by_length(lengths, max_tokens=52 * 2, overhead=5)) == 4
    assert len(split_by_length(np.array([7] * 16), max_tokens=1000, overhead=1)) == 1


@pytest.mark.parametrize(
    ("n_rows", "longest", "length"), [(1, 17, 32), (16, 17, 17), (4, 17, 20), (6, 8, 8), (3, 1, 16)]
)
def test_a_part_has_a_multiple_of_16_tokens(n_rows, longest, length):
    assert padded_length(n_rows, longest) == length


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_of_the_rows_in_order_is_cheaper_and_none_is_too_large(seed):
    rng = np.random.default_rng(seed)
    lengths, max_tokens, overhead = rng.integers(1, 40, 9), int(rng.integers(20, 200)), int(rng.integers(0, 30))

    def cost(parts):
        tokens = [len(part) * int(padded_length(len(part), max(part))) for part in parts]
        if any(len(part) > 1 and n > max_tokens for part, n in zip(parts, tokens, strict=True)):
            return math.inf
        return sum(tokens) + overhead * len(parts)

    parts = split_by_length(lengths, max_tokens, overhead)
    assert sorted(np.concatenate(parts)) == list(range(9))
    ordered = sorted(lengths.tolist())
    cuts = [[i + 1 for i in range(8) if bits >> i & 1] for bits in range(2**8)]
    every = [[ordered[a:b] for a, b in zip([0, *cut], [*cut, 9], strict=True)] for cut in cuts]
    assert cost([lengths[part].tolist() for part in parts]) == min(map(cost, every))


def test_no_part_is_padded_beyond_the_longest_row_of_the_data():
    parts = micro_batch(features_of([3, 5, 29]), np.array([0, 1]), 0, torch.device("cpu"))
    assert {tensors["input_ids"].shape[1] for tensors, _ in parts} <= set(range(5, 30))
    ((tensors, share),) = micro_batch(features_of([3, 5, 29]), np.array([2]), 0, torch.device("cpu"))
    assert tensors["input_ids"].shape == (1, 29) and share == 1


@pytest.mark.parametrize("num_labels", [2, 1])
def test_a_batch_in_parts_has_the_gradient_and_the_loss_of_the_whole(tmp_path, num_labels):
    folder = save_bert(tmp_path / "model", num_labels=num_labels, **NO_DROPOUT)
    lengths = [3, 30, 4, 29, 5, 6, 28]
    labels = np.arange(7) % 2 if num_labels == 2 else np.linspace(0, 5, 7, dtype=np.float32)
    features, rows = features_of(lengths, labels), np.array([6, 0, 1, 3, 4, 2, 5])
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    layers = compress(model)
    optimizer = torch.optim.SGD(optimizer_groups(model, 0.0), 0.1)
    parts = micro_batch(features, rows, 0, torch.device("cpu"))
    assert len(parts) > 1 and sum(share for _, share in parts) == pytest.approx(1)
    whole = [(features.batch(rows, 0), 1.0)]
    before = [p.detach().clone() for p in layers.successor.parameters()]
    moved, losses = [], []
    for batch in (whole, parts):
        layers.draw_replacements = lambda: [True, False]
        losses.append(train_step(model, layers, [batch], optimizer, [], 1e9, NO_SCALER).item())
        with torch.no_grad():
            moved.append([p - q for p, q in zip(layers.successor.parameters(), before, strict=True)])
            for p, q in zip(layers.successor.parameters(), before, strict=True):
                p.copy_(q)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert max(m.abs().max() for m in moved[0]) > 1e-3
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


def test_a_micro_batch_without_a_drawn_module_is_not_run_and_counts_in_no_loss(bert_folder):
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder, **NO_DROPOUT).train()
    layers, runs = compress(model), []
    model.register_forward_hook(lambda *_: runs.append(1))
    draws = iter([[False, False], [True, True]])
    layers.draw_replacements = lambda: next(draws)
    optimizer = torch.optim.SGD(optimizer_groups(model, 0.0), 0.1)
    batch = {"input_ids": torch.full((2, 5), 6), "labels": torch.tensor([0, 1])}
    loss = train_step(model, layers, [[(batch, 1.0)]] * 2, optimizer, [], 1.0, NO_SCALER)
    assert len(runs) == 1
    layers.fix_draw([True, True])
    model2 = AutoModelForSequenceClassification.from_pretrained(bert_folder, **NO_DROPOUT).train()
    compress(model2).fix_draw([True, True])
    assert loss.item() == pytest.approx(model2(**batch).loss.item(), abs=1e-6)


def test_an_overflow_in_float16_skips_the_update_and_counts_as_a_step(bert_folder):
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder).train()
    layers = compress(model)
    draws = iter([[False, False], [True, True], [True, True], [False, False]])
    layers.draw_replacements = lambda: next(draws)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.0), 1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    # The classifier's input is what overflows, as in float16.
    overflows = iter([True, False])
    model.bert.pooler.register_forward_hook(lambda _, __, out: out * 1e38 if next(overflows) else out)
    batch = {"input_ids": torch.full((2, 5), 6), "labels": torch.tensor([0, 1])}

    def step() -> bool:
        before = [p.detach().clone() for p in layers.successor.parameters()]
        train_step(model, layers, [[(batch, 1.0)]], optimizer, [scheduler], 1.0, scaler)
        return any(not torch.equal(p, q) for p, q in zip(layers.successor.parameters(), before, strict=True))

    assert not step()  # nothing drawn yet, and no gradient to unscale
    assert scaler.get_scale() == 64.0
    assert not step()  # the scaled gradients are not finite
    assert scaler.get_scale() == 32.0 and scheduler.last_epoch == 2
    assert step() and all(p.isfinite().all() for p in layers.successor.parameters())
    assert step() and scheduler.last_epoch == 4  # on momentum


def test_losses_are_kept_until_asked_for_and_a_bad_one_is_told_with_its_rows():
    losses = Losses(torch.tensor([1.0]))
    losses.add(4, [np.array([7, 2])], torch.tensor(2.0))
    losses.check()
    assert losses.mean() == 1.5 and losses.stacked().tolist() == [1.0, 2.0]
    losses.add(5, [np.array([1, 9]), np.array([3])], torch.tensor(3.0))
    losses.add(6, [np.array([8, 4]), np.array([30])], torch.tensor(math.nan))
    losses.add(7, [np.array([5])], torch.tensor(math.inf))
    with pytest.raises(LossError, match=r"^the loss of step 6 is not a number: .* counted from 0: 4, 8, 30$"):
        losses.check()
    assert Losses().mean() is None and Losses().stacked().shape == (0,)


def test_a_trained_weight_that_is_no_number_is_found():
    model = torch.nn.Linear(2, 2)
    check_weights(model, 3)
    model.weight.data[1, 1] = math.inf
    with pytest.raises(LossError, match="after step 3 there are weights"):
        check_weights(model, 3)
    model.weight.requires_grad_(False)
    check_weights(model, 3)
