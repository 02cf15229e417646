"""The method against recorded runs of the 2020 release (tests/data/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

from bert_of_theseus import compress
from bert_of_theseus.training import TrainState, optimizer_groups, train_step
from replacement_scheduler import ConstantReplacementScheduler, LinearReplacementScheduler

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("clip", ["off", "trained"])
def test_a_run_of_the_2020_release_is_reproduced(schedule, clip):
    arrays = np.load(DATA / f"{schedule}_clip_{clip}.npz")
    settings = json.loads(str(arrays["config"]))
    adamw = settings["adamw"]
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
    names += " num_labels hidden_dropout_prob attention_probs_dropout_prob layer_norm_eps"
    model = BertForSequenceClassification(BertConfig(**{name: settings[name] for name in names.split()}))
    prefix = "predecessor/"
    weights = {key.removeprefix(prefix): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(prefix)}
    model.load_state_dict(weights)
    model.train()

    layers = compress(model, settings["successor_layers"])
    optimizer = torch.optim.AdamW(
        optimizer_groups(model, adamw["weight_decay"]), adamw["lr"], eps=adamw["eps"], fused=True
    )
    n_steps = settings["steps"]
    lr_scheduler = get_linear_schedule_with_warmup(optimizer, settings["warmup_steps"], n_steps)
    if schedule == "linear":
        replacement_scheduler = LinearReplacementScheduler(layers, settings["rate"], settings["k"])
    else:
        replacement_scheduler = ConstantReplacementScheduler(layers, settings["rate"], settings["steps_for_replacing"])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, layers, optimizer, lr_scheduler, replacement_scheduler, scaler, n_steps)
    recorded = iter(arrays["replaced"].tolist())
    layers.draw_replacements = lambda: next(recorded)

    losses, steps_without_passes = [], 0
    for step in range(n_steps):
        batch = {
            name: torch.from_numpy(arrays[name][step])
            for name in ("input_ids", "attention_mask", "token_type_ids", "labels")
        }
        assert layers.replacing_rate == pytest.approx(arrays["replacing_rate"][step], abs=1e-6)
        assert lr_scheduler.get_last_lr()[0] == pytest.approx(arrays["learning_rate"][step], abs=1e-6)
        layers.fix_draw(arrays["replaced"][step].tolist())
        losses.append(model(**batch).loss.item())
        layers.fix_draw(None)
        loss = train_step(state, [[(batch, 1.0)]], max_grad_norm=float("inf") if clip == "off" else 1.0)
        if loss is None:
            steps_without_passes += 1
        else:
            assert loss.item() == pytest.approx(losses[-1], abs=1e-6)  # no dropout: the same pass twice
    assert steps_without_passes == (arrays["replaced"].sum(1) == 0).sum() > 0
    np.testing.assert_allclose(losses, arrays["loss"], atol=1e-4, rtol=0)

    for name, p in layers.successor.named_parameters():
        if not name.endswith("key.bias"):  # its true gradient is zero: Adam makes steps of the rounding errors
            np.testing.assert_allclose(p.detach(), arrays[f"successor/{name}"], atol=1e-3, rtol=0, err_msg=name)
    batch.pop("labels")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    np.testing.assert_allclose(logits, arrays["last_batch_eval_logits"], atol=1e-3, rtol=0)
