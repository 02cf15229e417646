"""Whatever keeps its layers in a list can be compressed: every architecture with every head it has."""

import copy
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from conftest import BAD, GOOD, OTHER, save_roberta, write_glue
from test_run_glue import arguments, run_here, score_again
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from bert_of_theseus import TheseusLayers, compress, export_successor, find_layers
from bert_of_theseus.classifier import load_classifier

TINY = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 4}
TINY |= {"max_position_embeddings": 40, "initializer_range": 0.3, "pad_token_id": 1}
WINDOWS = {"num_hidden_layers": 6, "local_attention": 4, "global_attn_every_n_layers": 3, "bos_token_id": 2}
WINDOWS |= {"eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "reference_compile": False}
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
ARCHITECTURES = {  # model_type and what its config needs beyond TINY
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "xlm-roberta": ("xlm-roberta", {}),
    "camembert": ("camembert", {}),
    "electra": ("electra", {"embedding_size": 8}),
    "distilbert": ("distilbert", {"hidden_dim": 24, "sinusoidal_pos_embds": False}),
    "deberta": ("deberta", RELATIVE),
    "deberta-v2": ("deberta-v2", RELATIVE),
    "deberta-v3": (  # with the convolution that follows the first layer in some sizes
        "deberta-v2",
        RELATIVE | {"conv_kernel_size": 3, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "mpnet": ("mpnet", {}),
    "ernie": ("ernie", {}),
    "modernbert": ("modernbert", WINDOWS),
    "nomic_bert": ("nomic_bert", {}),
    "vit": ("vit", {"image_size": 8, "patch_size": 4}),
    "llama": ("llama", {"num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3}),
    "gpt2": ("gpt2", {"n_inner": 24, "bos_token_id": 2, "eos_token_id": 3, "scale_attn_by_inverse_layer_idx": True}),
}
HEADS = ["SequenceClassification", "TokenClassification", "MultipleChoice", "QuestionAnswering", "MaskedLM"]
HEADS += ["ImageClassification"]
TEXT = HEADS[:-1]
WITHOUT = {  # heads that transformers has in no version
    "deberta": {"MultipleChoice"},
    "nomic_bert": {"MultipleChoice", "QuestionAnswering"},
    "llama": {"MultipleChoice", "MaskedLM"},
    "gpt2": {"MultipleChoice", "MaskedLM"},
}
CASES = [
    (name, head)
    for name in ARCHITECTURES
    for head in (["ImageClassification"] if name == "vit" else TEXT)
    if head not in WITHOUT.get(name, set())
]


def make(name: str, head: str = "SequenceClassification", **more) -> nn.Module:
    """A random model of the architecture, or a skip where this version of transformers has none."""
    model_type, settings = ARCHITECTURES[name]
    try:
        config = AutoConfig.for_model(model_type, **TINY | settings | {"num_labels": 2} | more)
    except ValueError:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    auto = getattr(transformers, f"AutoModelFor{head}")
    if type(config) not in auto._model_mapping:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type} for {head}")
    torch.manual_seed(0)
    return auto.from_config(config)


def make_batch(model: nn.Module, head: str) -> dict[str, torch.Tensor]:
    """Rows of unlike length, with the labels that the head takes."""
    generator = torch.Generator().manual_seed(1)
    n_rows, length = 4, 12
    if head == "ImageClassification":
        return {"pixel_values": torch.randn(n_rows, 3, 8, 8, generator=generator), "labels": torch.arange(n_rows) % 2}
    ids = torch.randint(5, 40, (n_rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, 9:] = 0
    ids[mask == 0] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    labels = {
        "SequenceClassification": {"labels": torch.arange(n_rows) % 2},
        "TokenClassification": {"labels": ids % 2},
        "MultipleChoice": {"labels": torch.tensor([0, 1])},
        "QuestionAnswering": {"start_positions": torch.arange(n_rows), "end_positions": torch.arange(n_rows) + 2},
        "MaskedLM": {"labels": ids},
    }
    if head == "MultipleChoice":
        batch = {key: tensor.view(2, 2, length) for key, tensor in batch.items()}
    return batch | labels[head]


def outputs(model: nn.Module, batch: dict) -> torch.Tensor:
    """The logits; for question answering of start and end."""
    with torch.no_grad():
        output = model(**batch)
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits])


def shake(layers: TheseusLayers) -> None:
    """Other weights in each layer, or a mix-up of successor and predecessor could not be seen."""
    with torch.no_grad():
        for p in layers.parameters():
            p.add_(torch.randn_like(p) * 0.05)


def record_runs(layers: TheseusLayers) -> list[str]:
    """A list to which every layer adds its name when it runs."""
    ran = []
    for name, stack in (("predecessor", layers.predecessor), ("successor", layers.successor)):
        for i, layer in enumerate(stack):
            layer.register_forward_pre_hook(lambda *_, name=f"{name}.{i}": ran.append(name))
    return ran


def expected_path(draw: list[bool], module_size: int) -> list[str]:
    path = []
    for i, replaced in enumerate(draw):
        of_predecessor = [f"predecessor.{j}" for j in range(i * module_size, (i + 1) * module_size)]
        path += [f"successor.{i}"] if replaced else of_predecessor
    return path


@pytest.mark.parametrize("name, head", CASES)
def test_the_drawn_layers_run_the_drawn_successor_layers_learn_and_the_export_is_the_same_model(name, head, tmp_path):
    model = make(name, head)
    before = copy.deepcopy(model.config)
    layers = compress(model)
    shake(layers)
    batch = make_batch(model, head)
    scc_n_layer = len(layers.successor)
    ran = record_runs(layers)

    model.train()
    for replaced in (0, 1):  # every second module
        draw = [i % 2 == replaced for i in range(scc_n_layer)]
        layers.fix_draw(draw)
        model.zero_grad()
        ran.clear()
        model(**batch).loss.backward()
        assert ran == expected_path(draw, 2)
        learned = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        parts = {n.partition(".successor.")[2].split(".")[0] for n in learned}
        assert parts == {str(i) for i in range(scc_n_layer) if draw[i]}
    layers.fix_draw(None)

    model.eval()
    ran.clear()
    expected = outputs(model, batch)
    assert ran == [f"successor.{i}" for i in range(scc_n_layer)]
    successor = export_successor(model)
    assert model.config.num_hidden_layers == before.num_hidden_layers
    assert torch.equal(outputs(successor, batch), expected)
    assert not any(isinstance(m, TheseusLayers) for m in successor.modules())
    for i, layer in enumerate(successor.get_submodule(find_layers(successor))):
        assert {m.layer_idx for m in layer.modules() if getattr(m, "layer_idx", None) is not None} <= {i}

    successor.save_pretrained(tmp_path)
    reloaded = getattr(transformers, f"AutoModelFor{head}").from_pretrained(tmp_path).eval()
    assert reloaded.config.num_hidden_layers == scc_n_layer == before.num_hidden_layers // 2
    for key, value in vars(before).items():
        if key == "layer_types" and value is not None:
            assert reloaded.config.layer_types == value[:scc_n_layer]
        if key == "use_cache":
            assert reloaded.config.use_cache == value
    assert {n: p.shape for n, p in reloaded.named_parameters()} == {n: p.shape for n, p in successor.named_parameters()}
    torch.testing.assert_close(outputs(reloaded, batch), expected)
    if head == "MaskedLM":
        embeddings = successor.get_input_embeddings().weight
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert (embeddings is successor.get_output_embeddings().weight) == tied
        assert (reloaded.get_input_embeddings().weight is reloaded.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_draw_without_replacements_is_the_predecessor(name, attention):
    head = "ImageClassification" if name == "vit" else "SequenceClassification"
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout": 0.0, "resid_pdrop": 0.0}
    dropout |= {"attention_dropout": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "seq_classif_dropout": 0.0}
    dropout |= {"classifier_dropout": 0.0}
    try:
        model = make(name, head, attn_implementation=attention, **dropout)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        pytest.skip(f"transformers {transformers.__version__}: no {attention} attention in {name}")
    batch = make_batch(model, head)
    expected = outputs(model.train(), batch)
    layers = compress(model)
    layers.fix_draw([False] * len(layers.successor))
    torch.testing.assert_close(outputs(model, batch), expected)
    # Drawn anew, half of the modules: the copies make it another model.
    layers.fix_draw([i % 2 == 0 for i in range(len(layers.successor))])
    assert not torch.allclose(outputs(model, batch), expected)


def gradients(name: str, enable: str | None) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a step, and how often parts of the layers ran for it."""
    head = "ImageClassification" if name == "vit" else "SequenceClassification"
    model = make(name, head)
    checkpointing = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    if enable == "before":
        model.gradient_checkpointing_enable(**checkpointing)
    layers = compress(model)
    if enable == "after":
        model.gradient_checkpointing_enable(**checkpointing)
    ran, runs_of_parts = record_runs(layers), []
    for layer in (*layers.predecessor, *layers.successor):
        # Hooks of a layer itself may stand outside of what is run again, in the backward pass.
        part = next(m for m in layer.modules() if isinstance(getattr(m, "weight", None), nn.Parameter))
        part.register_forward_pre_hook(lambda *_: runs_of_parts.append(1))
    layers.fix_draw([i != 1 for i in range(len(layers.successor))])
    torch.manual_seed(2)  # of the dropout
    model.train()(**make_batch(model, head)).loss.backward()
    path = expected_path([i != 1 for i in range(len(layers.successor))], 2)
    assert ran[: len(path)] == path and set(ran) == set(path)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, len(runs_of_parts)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_checkpointing_before_or_after_compression_changes_no_gradient(name):
    if not make(name, "ImageClassification" if name == "vit" else TEXT[0]).supports_gradient_checkpointing:
        pytest.skip(f"transformers {transformers.__version__}: no gradient checkpointing in {name}")
    expected, n_runs = gradients(name, None)
    for enable in ("before", "after"):
        found, n_runs_checkpointed = gradients(name, enable)
        assert n_runs_checkpointed > n_runs and found.keys() == expected.keys()
        for key, gradient in found.items():
            torch.testing.assert_close(gradient, expected[key], msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_evaluation_the_successors_hidden_states_come_out(name):
    head = "ImageClassification" if name == "vit" else "SequenceClassification"
    model = make(name, head).eval()
    batch = make_batch(model, head)
    model(**batch, output_hidden_states=True)  # transformers hooks the layers it sees at the first such call
    layers = compress(model)
    shake(layers)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
        again = export_successor(model)(**batch, output_hidden_states=True).hidden_states
    assert len(states) == len(again) == len(layers.successor) + 1
    assert all(map(torch.equal, states, again))


def test_each_layer_of_modernbert_runs_with_its_own_kind_of_attention():
    model = make("modernbert")
    layers = compress(model)
    wide = [i for i in range(6) if i % 3 == 0]  # of the predecessor: 0 and 3 look at all tokens

    def reach(layer: nn.Module) -> bool:
        """Whether the layer, in this model, sees a token that the window does not reach."""
        seen = []

        def change_last_token(module, args):
            hidden = args[0].clone()
            hidden[:, -1] = hidden[:, -1].flip(-1) * 2
            return (hidden, *args[1:])

        hook = layer.register_forward_hook(lambda module, args, output: seen.append(output))
        outputs(model, batch)
        changed = layer.register_forward_pre_hook(change_last_token)
        outputs(model, batch)
        hook.remove()
        changed.remove()
        first, second = (o[0] if isinstance(o, tuple) else o for o in seen)
        return not torch.allclose(first[0, 0], second[0, 0])

    batch = {"input_ids": torch.randint(5, 40, (1, 12), generator=torch.Generator().manual_seed(1))}
    model.train()
    for draw in ([True, False, False], [False, True, False], [False, False, True]):
        layers.fix_draw(draw)
        for i in range(3):
            stack = [layers.successor[i]] if draw[i] else [layers.predecessor[j] for j in (2 * i, 2 * i + 1)]
            numbers = [i] if draw[i] else [2 * i, 2 * i + 1]
            assert [reach(layer) for layer in stack] == [number in wide for number in numbers]


# ------------------------------------------------------------------------------- how models walk


class Walker(nn.Module):
    """Adds up what its layers give, walking over them in several ways in one forward pass."""

    def __init__(self, ways):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(6))
        self.config = transformers.BertConfig(num_hidden_layers=6)
        self.ways, self.walks = ways, []

    def forward(self):
        for way in self.ways:
            self.walks.append([id(layer) for layer in way(self.layers)])
        if len(self.walks) > 100:
            raise RuntimeError("too far")


def test_iteration_slices_and_numbers_see_one_path_in_a_forward_pass():
    ways = [iter, lambda x: x[:6], lambda x: [x[i] for i in range(len(x))], lambda x: [*x[:1], *x[1:]]]
    model = Walker(ways)
    layers = compress(model, seed=0)
    layers.set_replacing_rate(0.5)
    model.train()
    twin = TheseusLayers(nn.ModuleList(nn.Linear(1, 1) for _ in range(6)), 3, seed=0)
    twin.set_replacing_rate(0.5)
    for _ in range(10):
        model.walks.clear()
        model()
        path = expected_path(twin.draw_replacements(), 2)  # one draw a pass
        assert model.walks == [[id(layers.get_submodule(name)) for name in path]] * len(ways)
    model.eval().walks.clear()
    model()
    assert model.walks == [[id(layer) for layer in layers.successor]] * len(ways)


def test_a_forward_pass_that_fails_leaves_no_path_behind():
    model = Walker([iter])
    layers = compress(model, seed=0)
    layers.set_replacing_rate(0.5)
    model.train().walks = [None] * 100
    with pytest.raises(RuntimeError):
        model()
    assert len({len(list(layers)) for _ in range(20)}) > 1


def test_outside_a_forward_pass_the_layers_of_training_have_no_number_and_asking_draws_nothing():
    layers = compress(Walker([]))
    state = layers.generator.get_state()
    layers.train()
    assert layers
    with pytest.raises(TypeError, match="iterate"):
        len(layers)
    with pytest.raises(TypeError, match="iterate"):
        layers[0]
    assert torch.equal(layers.generator.get_state(), state)
    layers.eval()
    assert len(layers) == 3 and layers[0] is layers.successor[0]


def test_a_copy_of_a_compressed_model_walks_over_its_own_layers():
    model = Walker([iter])
    compress(model)
    twin = copy.deepcopy(model).train()
    twin.walks.clear()
    twin()
    assert set(twin.walks[0]) <= {id(m) for m in twin.modules()}


def test_the_export_keeps_no_hook_of_the_compression():
    model = make("bert")
    owner_name = find_layers(model).rpartition(".")[0]
    compress(model)
    owner = export_successor(model).get_submodule(owner_name)
    assert not (owner._forward_pre_hooks or owner._forward_hooks or owner._forward_hooks_always_called)
    kept = model.get_submodule(owner_name)
    assert len(kept._forward_pre_hooks) == len(kept._forward_hooks) == 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decoder_is_trained_without_a_key_value_cache_and_exported_with_one(name):
    model = make(name)
    assert model.config.use_cache
    layers = compress(model)
    layers.fix_draw([False, True])  # predecessor layer 1 and successor layer 1 would share a place in the cache
    assert model.train()(**make_batch(model, TEXT[0])).past_key_values is None
    assert export_successor(model).config.use_cache


def test_lists_with_an_entry_a_layer_are_cut():
    window = {"attention_window": [2, 4, 6, 8], "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    model = transformers.LongformerForSequenceClassification(transformers.LongformerConfig(**TINY | window))
    compress(model)
    assert export_successor(model).config.attention_window == [2, 4] and model.config.attention_window == [2, 4, 6, 8]


# ---------------------------------------------------------------------------------------- refused


def albert(**more):
    config = transformers.AlbertConfig(**TINY | {"embedding_size": 8} | more)
    return transformers.AlbertForSequenceClassification(config)


def funnel():
    settings = {"vocab_size": 40, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1, 1]}
    return transformers.FunnelForSequenceClassification(transformers.FunnelConfig(**settings))


def bart():
    sizes = {"encoder_layers": 4, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "d_model": 16}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40}
    return transformers.BartForSequenceClassification(transformers.BartConfig(**sizes))


def t5():
    sizes = {"num_layers": 4, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "vocab_size": 40}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def xlm():
    return transformers.XLMForSequenceClassification(
        transformers.XLMConfig(emb_dim=16, n_layers=4, n_heads=2, vocab_size=40)
    )


class FourLayers(transformers.BertConfig):
    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        if config_dict["num_hidden_layers"] != 4:
            raise ValueError("four layers,\nnot fewer")
        return super().from_dict(config_dict, **kwargs)


def four_layers():
    return transformers.BertForSequenceClassification(FourLayers(**TINY))


@pytest.mark.parametrize(
    "make_model, reason",
    [
        (albert, "one list of 4 equal layers .*none of them shared; found none"),
        (lambda: albert(num_hidden_groups=4), "runs its layers by their numbers in the config"),
        (funnel, "found funnel.encoder.blocks of ModuleList"),
        (bart, "an encoder and a decoder"),
        (t5, "an encoder and a decoder"),
        (xlm, "found 4 of them"),
        (four_layers, "FourLayers cannot be made one of 2 layers: four layers, not fewer"),
    ],
)
def test_what_cannot_be_compressed_is_refused_with_the_reason_in_one_line_and_left_alone(make_model, reason):
    model = make_model()
    with pytest.raises(ValueError, match=reason) as error:
        compress(model)
    assert "\n" not in str(error.value)
    assert not any(isinstance(m, TheseusLayers) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_kinds_of_layers_that_a_model_tells_by_their_place_are_refused_where_they_are_mixed():
    settings = TINY | {"num_key_value_heads": 1, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4}
    if not hasattr(transformers, "Qwen3Config"):
        pytest.skip(f"transformers {transformers.__version__} has no Qwen3")
    kinds = ["full_attention", "sliding_attention"]
    config = transformers.Qwen3Config(**settings, max_window_layers=0, layer_types=kinds * 2)
    with pytest.raises(ValueError, match=r"several kinds \(full_attention, sliding_attention\)"):
        compress(transformers.Qwen3ForSequenceClassification(config))
    config = transformers.Qwen3Config(**settings, layer_types=["full_attention"] * 4)
    model = transformers.Qwen3ForSequenceClassification(config)
    compress(model)
    assert export_successor(model).config.layer_types == ["full_attention"] * 2


# ------------------------------------------------------------------------------ the command line

WORDS = [*GOOD, *BAD, *OTHER, "##s", "."]
BERTS_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_wordpiece(folder: Path, tokenizer_class: str, special: list[str] = BERTS_TOKENS) -> None:
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    getattr(transformers, tokenizer_class)(str(folder / "vocab.txt")).save_pretrained(folder)


def save_whole_words(folder: Path, special: list[str], **roles: str) -> None:
    """A tokenizer as newer models have it, of tokenizer.json alone."""
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=roles["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if "sep_token" in roles:
        cls, sep = roles["cls_token"], roles["sep_token"]
        numbers = [(cls, vocabulary[cls]), (sep, vocabulary[sep])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=numbers
        )
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **roles).save_pretrained(folder)


def save_family(folder: Path, name: str) -> Path:
    """A random classifier of the architecture with a tokenizer of its kind; pads as the tokenizer does."""
    folder.mkdir(exist_ok=True)
    berts = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], BERTS_TOKENS, strict=True))
    pad = {"pad_token_id": 0}
    if name == "roberta":
        return save_roberta(folder)
    if name in ("bert", "electra", "distilbert", "nomic_bert", "ernie"):
        classes = {"electra": "ElectraTokenizerFast", "distilbert": "DistilBertTokenizerFast"}
        save_wordpiece(folder, classes.get(name, "BertTokenizerFast"))
    elif name == "mpnet":
        save_wordpiece(folder, "MPNetTokenizerFast", ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])
        pad = {"pad_token_id": 1}
    elif name in ("llama", "gpt2"):
        save_whole_words(folder, ["<unk>", "<s>", "</s>"], unk_token="<unk>", bos_token="<s>", eos_token="</s>")
        pad = {"pad_token_id": None}  # as they are published
    else:
        save_whole_words(folder, BERTS_TOKENS, **berts)
    make(name, **pad, bos_token_id=1, eos_token_id=2).save_pretrained(folder)
    return folder


TAKES_TYPES = {"bert", "electra", "nomic_bert", "ernie"}
FAMILIES = [*TAKES_TYPES, "roberta", "distilbert", "mpnet", "deberta-v3", "modernbert", "llama", "gpt2"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_command_compresses_the_family_and_gives_it_the_inputs_it_takes(name, tmp_path):
    folder = save_family(tmp_path / "predecessor", name)
    data, output = write_glue(tmp_path / "MRPC", "mrpc", n_train=16, n_dev=16), tmp_path / "successor"
    assert load_classifier(str(folder), ("0", "1"), max_seq_length=32).takes_token_types() == (name in TAKES_TYPES)
    flags = "--do_train --do_eval --max_steps 3 --save_steps 0 --replacing_rate 0.7 --per_gpu_eval_batch_size 5"
    run_here(*arguments("mrpc", folder, data, output, *flags.split()))
    n_layer = AutoConfig.from_pretrained(folder).num_hidden_layers
    successor = AutoModelForSequenceClassification.from_pretrained(output)
    assert successor.config.num_hidden_layers == n_layer // 2
    assert len(successor.get_submodule(find_layers(successor))) == n_layer // 2
    # In batches with padding it scored as transformers alone scores its folder row by row.
    results = json.loads((output / "run.json").read_text())["last"]["metrics"]
    assert results == pytest.approx(score_again(output, data, "mrpc"))


def test_deberta_v3_is_loaded_as_it_is_published_with_a_sentencepiece_model_alone(tmp_path):
    tokens = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    tokens |= {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "vocab_size": 28, "minloglevel": 2}
    sentences = [f"{word} is {other}" for word in GOOD for other in BAD]
    folder = tmp_path / "predecessor"
    make("deberta-v3", pad_token_id=0).save_pretrained(folder)
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(sentences), model_prefix=str(folder / "spm"), **tokens)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    tokenizer = load_classifier(str(folder), ("0", "1"), max_seq_length=32).tokenizer
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    assert tokenizer(sentences[0], sentences[-1])["input_ids"] == [
        *(1, *pieces.encode(sentences[0]), 2),
        *(*pieces.encode(sentences[-1]), 2),
    ]


def save_as_in_2020(folder: Path, gamma_and_beta: bool) -> Path:
    """A predecessor as transformers 2.x saved it: pickled weights, a short config, no tokenizer.json."""
    save_family(folder, "bert")
    weights = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    weights["bert.embeddings.position_ids"] = torch.arange(40)[None]
    if gamma_and_beta:
        weights = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
            for name, weight in weights.items()
        }
    for path in folder.iterdir():
        if path.name != "vocab.txt":
            path.unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    config = {name: TINY[name] for name in TINY if name not in ("pad_token_id", "initializer_range")}
    config |= {"attention_probs_dropout_prob": 0.1, "finetuning_task": "mrpc", "hidden_act": "gelu", "num_labels": 2}
    config |= {"hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "output_attentions": False, "output_past": True}
    config |= {"pruned_heads": {}, "torchscript": False, "type_vocab_size": 2, "use_bfloat16": False}
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    config |= {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "eos_token_ids": 0}
    config |= {"do_sample": False, "length_penalty": 1.0, "max_length": 20, "num_beams": 1, "temperature": 1.0}
    (folder / "config.json").write_text(json.dumps(config))
    roles = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles | {"mask_token": "[MASK]"}))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "max_len": 512, "init_inputs": []}')
    (folder / "added_tokens.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"not looked at")
    return folder


@pytest.mark.parametrize("gamma_and_beta", [False, True])
def test_a_predecessor_folder_of_2020_is_compressed(gamma_and_beta, tmp_path):
    folder = save_as_in_2020(tmp_path / "predecessor", gamma_and_beta)
    now = save_family(tmp_path / "now", "bert")
    ids = {"input_ids": torch.tensor([[2, 5, 6, 7, 3]])}
    old, new = (load_classifier(str(path), ("0", "1"), max_seq_length=32) for path in (folder, now))
    assert torch.equal(old.model.eval()(**ids).logits, new.model.eval()(**ids).logits)
    assert old.tokenizer("Good films.", "bad")["input_ids"] == new.tokenizer("Good films.", "bad")["input_ids"]
    data, output = write_glue(tmp_path / "MRPC", "mrpc", n_train=16, n_dev=8), tmp_path / "successor"
    flags = "--do_train --do_eval --do_lower_case --max_steps 2 --save_steps 0 --replacing_rate 0.7"
    run_here(*arguments("mrpc", folder, data, output, *flags.split()))
    assert AutoModelForSequenceClassification.from_pretrained(output).config.num_hidden_layers == 2
