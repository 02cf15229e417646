"""Load a sequence classifier with its labels in the task's order, and predict with it."""

import functools
import inspect
import json
import logging
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from bert_of_theseus.distributed import add_up, n_processes, rank

logger = logging.getLogger(__name__)

FLOAT32 = {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.float32}

# Bars that are not watched, in a log file, say, are redrawn every half minute.
BAR = {"dynamic_ncols": True, "mininterval": 0.5 if sys.stderr.isatty() else 30}


class UserError(Exception):
    """Something that the user can put right; the message says what and how."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """UserError, of `what` and why, where the block raises whatever damaged or missing files make loaders raise."""
    try:
        yield
    except BaseException as error:
        # A panic of the loaders' Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {in_short(error)}") from error


def in_short(error: BaseException) -> str:
    """The first line of what a library has to say, which can be pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def check_folder(path: str) -> None:
    """UserError where what must be a folder is none; it is not looked for on the Hub then."""
    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not os.path.isdir(path):
        raise UserError(f"{path}: no such folder; a model is a folder or a name on the Hub")


def load_config(path: str, config_name: str, cache_dir: str):
    """The model's config; UserError where `path` is no model."""
    check_folder(path)
    name = config_name or path
    check_folder(name)
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise UserError(f"{name} is no model: it holds no config.json")
    cache = {"cache_dir": cache_dir or None}
    no_folder = "" if os.path.isdir(name) else "no such folder, and on the Hub "
    with refusing(f"{name}: {no_folder}no config could be loaded"):
        check_counts(PretrainedConfig.get_config_dict(name, **cache)[0])
        config = AutoConfig.from_pretrained(name, **cache, trust_remote_code=False)
        config.__dict__.pop("auto_map", None)  # the folder's own code, which is not run: nobody shall look for it later
        return config


def check_counts(value, name: str = "") -> None:
    """ValueError where a config counts more layers, labels or heads than any model has: its class would list them."""
    if isinstance(value, dict | list):
        for inner, its in value.items() if isinstance(value, dict) else enumerate(value):
            check_counts(its, inner if isinstance(value, dict) else name)
    elif isinstance(value, int | float) and value > 10**5 and re.search("num_|layers?$", name):
        raise ValueError(f"{name} is {value:,}, which is beyond all use")


def load_tokenizer(name: str, cache_dir: str, do_lower_case: bool):
    """The fast tokenizer, made to lower-case the text if asked to."""
    check_folder(name)
    load = functools.partial(AutoTokenizer.from_pretrained, name, cache_dir=cache_dir or None, trust_remote_code=False)
    with refusing(f"{name}: no tokenizer could be loaded"):
        tokenizer = load()
        if do_lower_case and tokenizer.is_fast:
            if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
                tokenizer = load(do_lower_case=True)
            else:
                logger.warning("do_lower_case is ignored: %s is not a WordPiece tokenizer", type(tokenizer).__name__)
        tokenizer.init_kwargs.pop("auto_map", None)  # as in the config
    if not tokenizer.is_fast:
        raise UserError(f"{name}: {type(tokenizer).__name__} has no fast version, which is needed here")
    longest = tokenizer.model_max_length
    if not (isinstance(longest, int | float) and longest > 0):
        raise UserError(f"{name}: model_max_length in tokenizer_config.json is {str(longest)[:40]!r}, not a length")
    # Where there are no files, transformers may make a tokenizer to which every word is unknown.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"{name} holds no tokenizer: its vocabulary has no words; copy the tokenizer's files there")
    return tokenizer


class Loaded(NamedTuple):
    model: torch.nn.Module
    tokenizer: object
    label_order: list[int]  # the model's output for each label


def load_model(
    path: str,
    labels: Sequence[str] | None,
    new_head: bool = False,
    max_seq_length: int = 128,
    do_lower_case: bool = False,
    config_name: str = "",
    tokenizer_name: str = "",
    cache_dir: str = "",
) -> Loaded:
    """The model in float32, with the task's label names in its config, and its fast tokenizer.

    Args:
        path: a folder or a name on the Hub.
        labels: of the task, in its own order; None for regression, a single score.
        new_head: make the task head anew where the model has none, or one for another number of labels.
        max_seq_length: tokens that the model must be able to take.

    Raises:
        UserError: there is no such model, it has no head for the task, lacks weights, or takes no input of
            that length.
    """
    num_labels = len(labels) if labels else 1
    config = load_config(path, config_name, cache_dir)
    with refusing(f"{path}: no model could be loaded"):
        names = label_names(config, labels)
        config.num_labels = num_labels
        config.problem_type = "single_label_classification" if labels else "regression"
        check_extent(Path(path), config)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            cache_dir=cache_dir or None,
            ignore_mismatched_sizes=True,  # what does not fit is dealt with below
            output_loading_info=True,
            trust_remote_code=False,
            **FLOAT32,
        )
    fitting_head = check_loaded_weights(path, model, report, names, num_labels, new_head)

    order = label_order(labels, names) if labels and fitting_head else list(range(num_labels))
    if labels:
        model.config.id2label = {output: label for label, output in zip(labels, order, strict=True)}
        model.config.label2id = dict(zip(labels, order, strict=True))
    tokenizer = load_tokenizer(tokenizer_name or path, cache_dir, do_lower_case)
    with refusing(f"{tokenizer_name or path}: no token to pad rows with could be found"):
        if tokenizer.pad_token is None:  # as published decoders have it
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
            model.config.pad_token_id = tokenizer.pad_token_id
        if model.config.pad_token_id is None:  # by which a decoder's head finds the last token of a row
            model.config.pad_token_id = tokenizer.pad_token_id
        pad_token_id = tokenizer.pad_token_id
    if pad_token_id is None:
        raise UserError(f"{tokenizer_name or path}: the tokenizer has no token to pad rows with")
    longest = min(tokenizer.model_max_length, positions(model) or max_seq_length)
    if max_seq_length > longest:
        raise UserError(f"{path} takes {longest} tokens at most, not a max_seq_length of {max_seq_length}")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"{tokenizer_name or path}: the tokenizer has {len(tokenizer)} tokens, more than the model embeds"
        )
    with refusing(f"{path}: model and tokenizer make nothing of a sentence"):
        check_pass(model, tokenizer, max_seq_length)
    return Loaded(model, tokenizer, order)


def check_pass(model: torch.nn.Module, tokenizer, max_seq_length: int) -> None:
    """Some error where text does not become logits: of what is wrong in a config much shows only in use."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= model.get_input_embeddings().num_embeddings:
        raise ValueError(f"the tokenizer's vocabulary counts to {largest}, which the model does not embed")
    text = "a word, \N{SNOWMAN}"  # also of what no vocabulary may have
    options = {"truncation": True, "max_length": max_seq_length, "return_token_type_ids": takes_token_types(model)}
    with as_it_was(tokenizer), torch.inference_mode():
        for pair in ([text], [text, text]):
            logits = model(**tokenizer(*pair, return_tensors="pt", **options)).logits
            if logits.shape != (1, model.config.num_labels):
                raise ValueError(f"logits of shape {tuple(logits.shape)} for one row")


@contextmanager
def as_it_was(tokenizer) -> Iterator[None]:
    """After the block the fast tokenizer cuts and pads as before: what its calls set would be saved with it."""
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()


def check_extent(folder: Path, config) -> None:
    """ValueError where weights lie outside the folder, or the config calls for far more than they hold.

    What is missing is made anew: a damaged number would have the machine make a model without bounds.
    """
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]  # none where the model is on the Hub
    for file in folder.glob("*.bin"):
        check_archive(file)
    for index in folder.glob("*.index.json"):
        if any(Path(name).name != name for name in json.loads(index.read_text())["weight_map"].values()):
            raise ValueError(f"{index.name} names a file that is not in the folder")
    n_bytes = sum(file.stat().st_size for file in files)
    n_layer = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if files and n_layer > n_bytes // 1000:
        raise ValueError(f"its config calls for {n_layer:,} layers, its weights have {n_bytes:,} bytes")
    if files:
        with torch.device("meta"):  # which takes no memory
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
        n_parameters = sum(p.numel() for p in model.parameters())
        if n_parameters > 10**7 + 4 * n_bytes:
            raise ValueError(f"its config calls for {n_parameters:,} parameters, its weights have {n_bytes:,} bytes")


def check_archive(path: Path) -> None:
    """ValueError where a file of torch.save, which compresses nothing, would unpack to more than it has."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # of the old format, say
            return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"{path.name} would unpack to {unpacked:,} bytes")


def check_loaded_weights(path: str, model, report: dict, names: list[str], num_labels: int, new_head: bool) -> bool:
    """Whether the head that was loaded is the task's; UserError where what was not loaded may not be made anew."""
    if any("scc_layer" in key for key in report["unexpected_keys"]):
        raise UserError(
            f"{path} is a checkpoint of the 2020 release; scripts/convert_to_hf_ckpt.py makes a model of it"
        )
    made_anew = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    # The pooler comes with the head: a pre-trained encoder may lack it.
    encoder = [k for k in made_anew if k.startswith(f"{model.base_model_prefix}.") and ".pooler." not in k]
    if encoder:
        raise UserError(f"{path}: its weights are not those that its config calls for: {', '.join(encoder)[:100]} ...")
    if not new_head:
        fine_tune_first = "fine-tune it first (run_glue.py without --replacing_rate)"
        if len(names) != num_labels:
            outputs = f"its task head has {len(names)} outputs, the task needs {num_labels}"
            raise UserError(f"{path}: {outputs}: {fine_tune_first}")
        if made_anew:
            raise UserError(f"{path} has no task head ({', '.join(made_anew)} missing): {fine_tune_first}")
    if made_anew:
        logger.info("Not in the checkpoint, made anew: %s", ", ".join(made_anew))
    return len(names) == num_labels and not made_anew


def label_names(config, labels: Sequence[str] | None) -> list[str]:
    """What the config calls the model's outputs, in their order: by `label2id` where that has the task's labels."""
    outputs = {str(name).lower(): output for name, output in (config.label2id or {}).items()}
    if labels and sorted(outputs) == sorted(labels) and sorted(outputs.values()) == list(range(len(labels))):
        return sorted(outputs, key=outputs.get)
    return [str(config.id2label.get(output)) for output in range(config.num_labels)]


def label_order(labels: Sequence[str], names: list[str]) -> list[int]:
    """The output that stands for each label, in a head whose outputs have these names."""
    lowered = [name.lower() for name in names]
    if sorted(lowered) == sorted(labels):
        return [lowered.index(label) for label in labels]
    if not all(name.startswith("label_") for name in lowered):
        logger.warning("The model calls its labels %s; they are taken as %s", ", ".join(names), ", ".join(labels))
    return list(range(len(labels)))


def positions(model: torch.nn.Module) -> int | None:
    """Tokens that the model has positions for; None where nothing limits them."""
    n_positions = getattr(model.config, "max_position_embeddings", None)
    if n_positions is None or n_positions < 1:  # XLNet's -1
        return None
    embedding = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding_idx = getattr(embedding, "padding_idx", None)  # RoBERTa counts positions from the one after it
    return n_positions if padding_idx is None else n_positions - padding_idx - 1


def takes_token_types(model: torch.nn.Module) -> bool:
    """Whether the model tells a pair's two sentences apart by `token_type_ids`."""
    has_types = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    return has_types and "token_type_ids" in inspect.signature(model.forward).parameters


def predict(model: torch.nn.Module, features, batch_size: int, pad_token_id: int, check=lambda: None) -> torch.Tensor:
    """Logits (rows, outputs) in file order, float32 on the CPU; in evaluation mode, in which the model is left.

    Several processes share the batches out, and each gets all the logits. Before each batch all call `check`, which
    may raise an error to end the pass.
    """
    model.eval()
    device = next(model.parameters()).device
    by_length = np.argsort(-features.lengths, kind="stable")  # batches of like lengths need little padding
    batches = [by_length[start : start + batch_size] for start in range(0, len(features), batch_size)]
    logits = torch.zeros(len(features), model.config.num_labels, device=device)
    bar = {"desc": "Evaluating", "leave": False, "disable": rank() > 0 or None, **BAR}
    with torch.inference_mode():
        for turn in tqdm(range(0, len(batches), n_processes()), **bar):
            check()
            if turn + rank() >= len(batches):
                break
            rows = batches[turn + rank()]
            batch = features.batch(rows, pad_token_id)
            batch.pop("labels", None)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits[torch.from_numpy(rows).to(device)] = model(**batch).logits.float()
    return add_up(logits).cpu()
