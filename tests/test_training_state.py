import pytest
import torch
from conftest import tiny_batch
from transformers import AutoModelForSequenceClassification

from bert_of_theseus import compress, export_successor, load_successor
from bert_of_theseus.training import optimizer_groups
from bert_of_theseus.training_state import Parts, collect, read, restore, write
from replacement_scheduler import LinearReplacementScheduler


def make(folder, replacing_rate: float = 0.4):
    """A model to compress and all that moves with it; dropout is on."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    layers = compress(model, seed=3)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.01), 1e-2, fused=True)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        LinearReplacementScheduler(layers, replacing_rate, 0.01),
    ]
    return model.train(), Parts(optimizer, schedulers, torch.amp.GradScaler("cpu", enabled=False), layers)


def step(model, parts: Parts) -> float:
    loss = model(**tiny_batch()).loss
    if loss.requires_grad:
        loss.backward()
    parts.optimizer.step()
    for scheduler in parts.schedulers:
        scheduler.step()
    parts.optimizer.zero_grad(set_to_none=False)
    return loss.item()


def gradients(parts: Parts) -> list:
    return [None if p.grad is None else p.grad.abs().sum().item() for p in parts.parameters()]


def test_what_is_restored_goes_on_to_the_bit(encoder_folder, tmp_path):
    torch.manual_seed(5)
    model, parts = make(encoder_folder, 0.3)
    for _ in range(100):  # until one of the two layers has been drawn, and so has gradients, and one has not
        if None in gradients(parts) and 0.0 in gradients(parts):
            break
        step(model, parts)
        if None not in gradients(parts):
            model, parts = make(encoder_folder, 0.3)
            parts.layers.generator.manual_seed(torch.randint(10**6, ()).item())
    assert None in gradients(parts) and 0.0 in gradients(parts)
    write(tmp_path / "state", *collect(parts, torch.tensor([1.0, 2.0])))
    export_successor(model).save_pretrained(tmp_path / "successor")
    before = gradients(parts)
    expected = [step(model, parts) for _ in range(6)]

    again, its = make(encoder_folder, 0.3)
    load_successor(again, AutoModelForSequenceClassification.from_pretrained(tmp_path / "successor"))
    losses = restore(its, *read(tmp_path / "state"))
    assert losses.tolist() == [1.0, 2.0] and gradients(its) == before
    assert [step(again, its) for _ in range(6)] == expected
    for ours, theirs in zip(its.parameters(), parts.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert its.layers.replacing_rate == parts.layers.replacing_rate


def test_a_state_of_something_else_is_refused(bert_folder, tmp_path):
    model, parts = make(bert_folder)
    for _ in range(5):
        step(model, parts)
    tensors, figures = collect(parts, torch.zeros(0))
    for change in (
        {"optimizer.0.exp_avg": torch.zeros(3)},
        {"optimizer.99.exp_avg": torch.zeros(3)},
        {"optimizer.0": torch.zeros(3)},
        {"draws": torch.zeros(5, dtype=torch.uint8)},
        {"process.0.random": torch.zeros(5)},
    ):
        with pytest.raises(ValueError, match="not this run's state"):
            restore(parts, tensors | change, figures)
    for name in figures:
        if name != "processes":
            with pytest.raises(ValueError, match="not this run's state"):
                restore(parts, tensors, {k: v for k, v in figures.items() if k != name})
    with pytest.raises(ValueError, match="not this run's state"):
        restore(parts, {k: v for k, v in tensors.items() if not k.startswith("process")}, figures)
    restore(parts, tensors, figures)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"\x80\x04K\x01."])
def test_a_file_that_is_no_state_is_refused(tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read(tmp_path / "state")
