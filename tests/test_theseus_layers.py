import math

import pytest
import torch
from conftest import tiny_batch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from bert_of_theseus import TheseusLayers, compress, export_successor, find_layers, load_successor


@pytest.fixture
def model(encoder_folder):
    return AutoModelForSequenceClassification.from_pretrained(encoder_folder)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_successor_starts_as_a_copy_of_the_first_layers(model):
    before = model.get_submodule(find_layers(model))
    layers = compress(model, scc_n_layer=2)
    assert layers.predecessor is before and len(layers.successor) == 2
    for i in range(2):
        for p, q in zip(layers.successor[i].parameters(), before[i].parameters(), strict=True):
            assert torch.equal(p, q) and p.data_ptr() != q.data_ptr()


def test_half_of_the_layers_is_the_default(model):
    assert len(compress(model).successor) == 2


@pytest.mark.parametrize("scc_n_layer", [1, 2, 4])
def test_every_divisor_makes_modules_of_equal_size(model, scc_n_layer):
    layers = compress(model, scc_n_layer)
    module_size = 4 // scc_n_layer
    for i in range(scc_n_layer):
        draw = [j == i for j in range(scc_n_layer)]
        layers.train().fix_draw(draw)
        expected = []
        for j in range(scc_n_layer):
            expected += (
                [layers.successor[j]] if draw[j] else list(layers.predecessor[j * module_size : (j + 1) * module_size])
            )
        assert [id(layer) for layer in layers] == [id(layer) for layer in expected]


@pytest.mark.parametrize("scc_n_layer", [3, 0, -1, 5, 8])
def test_a_number_of_layers_that_does_not_divide_is_refused_and_leaves_the_model_as_it_was(model, scc_n_layer):
    with pytest.raises(ValueError, match="1, 2, 4"):
        compress(model, scc_n_layer)
    assert not any(isinstance(m, TheseusLayers) for m in model.modules())
    assert trained_names(model) == {name for name, _ in model.named_parameters()}


def test_only_the_successor_is_trained_and_the_config_stays_the_predecessors(model):
    name = find_layers(model)
    layers = compress(model)
    assert trained_names(model) == {f"{name}.successor.{n}" for n, _ in layers.successor.named_parameters()}
    assert model.config.num_hidden_layers == 4


@pytest.mark.parametrize("draw", [[True, True], [True, False], [False, True]])
def test_exactly_the_drawn_layers_get_gradients(model, draw):
    layers = compress(model)
    layers.fix_draw(draw)
    model.train()(**tiny_batch()).loss.backward()
    drawn = {f"{find_name(model)}.successor.{i}." for i in range(2) if draw[i]}
    for name, p in model.named_parameters():
        if any(name.startswith(prefix) for prefix in drawn):
            assert p.grad is not None, name
            # The key's bias shifts all of a query's scores alike: its true gradient is zero.
            assert p.grad.abs().max() > 0 or "key.bias" in name, name
        else:
            assert p.grad is None, name


def find_name(model: nn.Module) -> str:
    return next(name for name, m in model.named_modules() if isinstance(m, TheseusLayers))


def test_the_loss_is_computed_where_no_module_is_drawn(model):
    layers = compress(model)
    layers.fix_draw([False, False])
    loss = model.train()(**tiny_batch()).loss
    assert math.isfinite(loss.item()) and not loss.requires_grad


def test_a_walk_that_is_not_fixed_draws_anew_and_a_fixed_one_does_not(model):
    layers = compress(model, seed=3)
    layers.set_replacing_rate(0.5)
    layers.train()
    expected = [TheseusLayers.draw_replacements(twin) for twin in [seeded(3)] for _ in range(20)]
    assert [len(list(layers)) for _ in range(20)] == [sum(1 if r else 2 for r in draw) for draw in expected]
    state = layers.generator.get_state()
    layers.fix_draw([True, False])
    assert {len(list(layers)) for _ in range(20)} == {3}
    assert torch.equal(layers.generator.get_state(), state)


def seeded(seed: int, rate: float = 0.5, modules: int = 2) -> TheseusLayers:
    layers = TheseusLayers(nn.ModuleList(nn.Linear(1, 1) for _ in range(modules)), modules, seed)
    layers.set_replacing_rate(rate)
    return layers


def test_a_draw_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="2 modules"):
        seeded(0).fix_draw([True])


def test_in_evaluation_only_the_successor_runs_whatever_is_drawn(model):
    layers = compress(model)
    layers.set_replacing_rate(0.01)
    layers.fix_draw([False, False])
    assert [id(layer) for layer in model.eval() and layers] == [id(layer) for layer in layers.successor]


def test_dropout_is_on_in_the_frozen_layers(model):
    layers = compress(model)
    layers.fix_draw([False, False])
    model.train()
    batch = tiny_batch()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_modules_are_replaced_at_the_replacing_rate_and_independently(rate):
    n = 10_000
    layers = seeded(7, rate, modules=4)
    draws = torch.tensor([layers.draw_replacements() for _ in range(n)], dtype=torch.float64)
    sigma = math.sqrt(rate * (1 - rate) / n)
    assert ((draws.mean(0) - rate).abs() < 3 * sigma).all()
    both = rate * rate
    for i in range(4):
        for j in range(i):
            share = (draws[:, i] * draws[:, j]).mean()
            assert abs(share - both) < 3 * math.sqrt(both * (1 - both) / n)
    lag = (draws[1:] * draws[:-1]).mean(0)
    assert ((lag - both).abs() < 3 * math.sqrt(both * (1 - both) / n)).all()


def test_at_rate_1_every_module_is_replaced():
    layers = seeded(1, rate=1.0)
    assert all(all(layers.draw_replacements()) for _ in range(1000))


def test_the_same_seed_gives_the_same_draws_whatever_else_is_random():
    first, second, other = seeded(5), seeded(5), seeded(6)
    draws = [first.draw_replacements() for _ in range(50)]
    again = []
    for _ in range(50):
        torch.rand(3)
        again.append(second.draw_replacements())
    assert draws == again
    assert draws != [other.draw_replacements() for _ in range(50)]


@pytest.mark.parametrize("rate", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_refused_and_the_old_one_stays(rate):
    layers = seeded(0, 0.5)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        layers.set_replacing_rate(rate)
    assert layers.replacing_rate == 0.5


def test_the_exported_successor_is_an_ordinary_model_with_the_same_logits(model, tmp_path):
    compress(model, scc_n_layer=2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)  # or a mix-up of successor and predecessor could not be seen
    batch = tiny_batch()
    expected = model.eval()(**batch).logits
    successor = export_successor(model)
    assert type(successor) is type(model)
    assert successor.config.num_hidden_layers == 2 and model.config.num_hidden_layers == 4
    exported = successor.get_submodule(find_layers(successor))
    assert type(exported) is nn.ModuleList and len(exported) == 2
    for i, layer in enumerate(exported):
        assert {m.layer_idx for m in layer.modules() if hasattr(m, "layer_idx")} <= {i}
    assert trained_names(successor) == {name for name, _ in successor.named_parameters()}
    successor.save_pretrained(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert {n: p.shape for n, p in reloaded.named_parameters()} == {n: p.shape for n, p in successor.named_parameters()}
    for exported_model in (successor, reloaded):
        assert torch.equal(exported_model(**batch).logits, expected)


def test_export_shares_nothing_with_the_compressed_model(model):
    compress(model)
    model.train()
    successor = export_successor(model)
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in pointers for p in successor.parameters())
    assert successor.config is not model.config
    assert model.training and not successor.training
    assert len(trained_names(model)) < len(list(successor.parameters()))


def test_a_second_compression_is_refused_until_the_successor_is_exported(model):
    compress(model)
    with pytest.raises(ValueError, match="compressed already"):
        compress(model)
    assert len(compress(export_successor(model)).successor) == 1


def test_export_of_a_model_that_is_not_compressed_is_refused(model):
    with pytest.raises(ValueError, match="not compressed"):
        export_successor(model)


def test_a_model_without_a_list_of_layers_is_refused():
    config = BertConfig(hidden_size=8, num_attention_heads=1, intermediate_size=8, num_hidden_layers=2, vocab_size=8)
    model = BertForSequenceClassification(config)
    model.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="one list of 3 equal layers"):
        compress(model)
    with pytest.raises(ValueError, match="not a model of transformers"):
        compress(nn.Linear(1, 1))


def test_a_successor_s_weights_can_be_put_back(encoder_folder):
    model, again, plain = (AutoModelForSequenceClassification.from_pretrained(encoder_folder) for _ in range(3))
    layers, its = compress(model), compress(again)
    for p in layers.successor.parameters():
        p.data += 1
    load_successor(again, export_successor(model))
    for (name, ours), theirs in zip(its.successor.named_parameters(), layers.successor.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.requires_grad, name
    with pytest.raises(ValueError, match="not compressed"):
        load_successor(plain, plain)
    with pytest.raises(ValueError, match="no successor of this"):
        load_successor(model, plain)


def test_a_model_s_state_has_the_draws_and_the_exported_successor_s_has_not(encoder_folder):
    model, again, third = (AutoModelForSequenceClassification.from_pretrained(encoder_folder) for _ in range(3))
    layers, its, others = (compress(m, seed=i) for i, m in enumerate((model, again, third)))
    layers.set_replacing_rate(0.5)
    layers.draw_replacements()
    state = model.state_dict()
    again.load_state_dict(state)
    assert torch.equal(its.generator.get_state(), layers.generator.get_state())
    assert list(set(state) - {n for n, _ in model.named_parameters()} - {n for n, _ in model.named_buffers()}) == [
        f"{find_name(model)}._extra_state"
    ]
    assert not any("_extra_state" in name for name in export_successor(model).state_dict())
    before = others.generator.get_state()
    load_successor(third, export_successor(model))  # weights alone
    del state[f"{find_name(model)}._extra_state"]
    third.load_state_dict(state, strict=False)
    assert torch.equal(others.generator.get_state(), before)
