"""Load a sequence classifier with its labels in the task's order, and predict with it."""

import functools
import logging
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

logger = logging.getLogger(__name__)

# Bars that are not watched, in a log file, say, are redrawn every half minute.
BAR = {"dynamic_ncols": True, "mininterval": 0.5 if sys.stderr.isatty() else 30}


class UserError(Exception):
    """Something that the user can put right; the message says what and how."""


def load_config(path: str, config_name: str, cache_dir: str):
    """The model's config; UserError where `path` is no model. What must be a folder is not looked for on the Hub."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not os.path.isdir(path):
        raise UserError(f"{path}: no such folder; a model is a folder or a name on the Hub")
    if os.path.isdir(path) and not config_name and not os.path.isfile(os.path.join(path, "config.json")):
        raise UserError(f"{path} is no model: it holds no config.json")
    name = config_name or path
    try:
        return AutoConfig.from_pretrained(name, cache_dir=cache_dir or None, trust_remote_code=False)
    except Exception as error:  # whatever a damaged or missing file makes the loaders raise
        raise UserError(f"{name}: no config could be loaded: {error}") from error


def load_tokenizer(name: str, cache_dir: str, do_lower_case: bool):
    """The fast tokenizer, made to lower-case the text if asked to."""
    load = functools.partial(AutoTokenizer.from_pretrained, name, cache_dir=cache_dir or None, trust_remote_code=False)
    try:
        tokenizer = load()
        if do_lower_case and tokenizer.is_fast:
            if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
                tokenizer = load(do_lower_case=True)
            else:
                logger.warning("--do_lower_case is ignored: %s is not a WordPiece tokenizer", type(tokenizer).__name__)
    except Exception as error:  # as above
        raise UserError(f"{name}: no tokenizer could be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{name}: {type(tokenizer).__name__} has no fast version, which is needed here")
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

    Raises:
        UserError: there is no such model, it has no head for the task, or takes no input of that length.
    """
    num_labels = len(labels) if labels else 1
    config = load_config(path, config_name, cache_dir)
    fine_tune_first = "fine-tune it first (run_glue.py without --replacing_rate)"
    if not new_head and config.num_labels != num_labels:
        outputs = f"its task head has {config.num_labels} outputs, the task needs {num_labels}"
        raise UserError(f"{path}: {outputs}: {fine_tune_first}")
    fitting_head = config.num_labels == num_labels
    names = [str(config.id2label.get(i)) for i in range(config.num_labels)]
    config.num_labels = num_labels
    config.problem_type = "single_label_classification" if labels else "regression"
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            cache_dir=cache_dir or None,
            ignore_mismatched_sizes=new_head,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # as above
        raise UserError(f"{path}: no model could be loaded: {error}") from error
    if any("scc_layer" in key for key in report["unexpected_keys"]):
        raise UserError(
            f"{path} is a checkpoint of the 2020 release; scripts/convert_to_hf_ckpt.py makes a model of it"
        )
    made_anew = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if made_anew and not new_head:
        raise UserError(f"{path} has no task head ({', '.join(made_anew)} missing): {fine_tune_first}")
    if made_anew:
        logger.info("Made anew: %s", ", ".join(made_anew))

    order = list(range(num_labels))
    if labels:
        if fitting_head and not made_anew:
            order = label_order(labels, names)
        for label, output in zip(labels, order, strict=True):
            config.id2label[output] = label
        config.label2id = {label: output for output, label in config.id2label.items()}
    model.config.id2label, model.config.label2id = config.id2label, config.label2id

    tokenizer = load_tokenizer(tokenizer_name or path, cache_dir, do_lower_case)
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_seq_length)
    if max_seq_length > longest:
        raise UserError(f"--max_seq_length {max_seq_length}: {path} takes {longest} tokens at most")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"{tokenizer_name or path}: the tokenizer has {len(tokenizer)} tokens, more than the model embeds"
        )
    return Loaded(model.float(), tokenizer, order)


def label_order(labels: Sequence[str], names: list[str]) -> list[int]:
    """The output that stands for each label, in a head whose outputs have these names."""
    lowered = [name.lower() for name in names]
    if sorted(lowered) == sorted(labels):
        return [lowered.index(label) for label in labels]
    if not all(name.startswith("label_") for name in lowered):
        logger.warning("The model calls its labels %s; they are taken as %s", ", ".join(names), ", ".join(labels))
    return list(range(len(labels)))


def takes_token_types(model: torch.nn.Module) -> bool:
    """Whether the model tells a pair's two sentences apart by `token_type_ids`."""
    return (getattr(model.config, "type_vocab_size", None) or 0) > 1


def predict(model: torch.nn.Module, features, batch_size: int, pad_token_id: int) -> torch.Tensor:
    """Logits (rows, outputs) in file order, float32 on the CPU; in evaluation mode, in which the model is left."""
    model.eval()
    device = next(model.parameters()).device
    by_length = np.argsort(-features.lengths, kind="stable")  # batches of like lengths need little padding
    logits = []
    with torch.no_grad():
        for start in tqdm(range(0, len(features), batch_size), desc="Evaluating", leave=False, **BAR):
            batch = features.batch(by_length[start : start + batch_size], pad_token_id)
            batch.pop("labels", None)
            logits.append(model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.float().cpu())
    ordered = torch.cat(logits)
    ordered[torch.from_numpy(by_length)] = ordered.clone()
    return ordered
