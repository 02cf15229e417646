"""Load a sequence classifier with its labels in the task's order, and predict with it."""

import inspect
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from bert_of_theseus.data.features import tokenize
from bert_of_theseus.data_parallel import add_up, n_processes, rank

logger = logging.getLogger(__name__)

FLOAT32 = {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.float32}

# A bar that nobody watches, in a log file, say, is redrawn every half minute.
BAR = {"dynamic_ncols": True, "mininterval": 0.5 if sys.stderr.isatty() else 30}


class ModelError(ValueError):
    """A model that cannot be loaded, or does not fit the task; the message says which, why, and what to do."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        path: a folder or a name on the Hub.
        config_name, tokenizer_name: likewise, if not `path`.
        cache_dir: for downloads; empty: transformers' own.
        do_lower_case: lower-case the text; False: as the tokenizer is set.
    """

    path: str
    config_name: str = ""
    tokenizer_name: str = ""
    cache_dir: str = ""
    do_lower_case: bool = False


@dataclass
class Classifier:
    """A model in float32, its fast tokenizer, and `label_order`: the model's output for each of the task's labels."""

    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    label_order: list[int]

    def takes_token_types(self) -> bool:
        """Whether the model tells the two sentences of a pair apart by `token_type_ids`."""
        has_types = (getattr(self.model.config, "type_vocab_size", None) or 0) > 1
        return has_types and "token_type_ids" in inspect.signature(self.model.forward).parameters

    def predict(self, features, batch_size: int) -> np.ndarray:
        """Logits (rows, labels), float32, in file order and the task's order of labels; or scores (rows, 1).

        The model is left in evaluation mode. Several processes share the batches, and each gets all logits. ModelError
        where one is not a finite number.
        """
        model = self.model.eval()
        device = next(model.parameters()).device
        by_length = np.argsort(-features.lengths, kind="stable")  # batches of like lengths need little padding
        batches = [by_length[start : start + batch_size] for start in range(0, len(features), batch_size)]
        logits = torch.zeros(len(features), model.config.num_labels, device=device)
        bar = {"desc": "Evaluating", "leave": False, "disable": rank() > 0 or None, **BAR}
        with torch.inference_mode():
            for rows in tqdm(batches[rank() :: n_processes()], **bar):
                batch = features.batch(rows)
                batch.pop("labels", None)
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                logits[torch.from_numpy(rows).to(device)] = model(**batch).logits.float()
        logits = add_up(logits).cpu().numpy()[:, self.label_order]
        if not np.isfinite(logits).all():
            path = self.model.name_or_path
            raise ModelError(f"{path}: its outputs are not finite numbers; something went wrong in its training")
        return logits

    def predict_examples(self, examples, max_seq_length: int, batch_size: int) -> np.ndarray:
        """The same of examples that are not tokenised yet."""
        features = tokenize(examples, self.tokenizer, max_seq_length, self.takes_token_types())
        return self.predict(features, batch_size)


def load_classifier(
    source: ModelSource | str, labels: Sequence[str] | None, new_head: bool = False, max_seq_length: int = 128
) -> Classifier:
    """Load a model for a task. Its config gets the names of the task's labels.

    Args:
        source: where from; a text is its path.
        labels: of the task, in its own order; None for regression, a single score.
        new_head: make a new task head where the model has none, or one for another number of labels.
        max_seq_length: tokens that the model must be able to take.

    Raises:
        ModelError: there is no such model, it has no head for the task, lacks weights, or takes fewer tokens.
    """
    source = ModelSource(source) if isinstance(source, str) else source
    config = _load_config(source)
    names = label_names(config, labels)
    config.num_labels = len(labels) if labels else 1
    config.problem_type = "single_label_classification" if labels else "regression"
    with _told_as_model_error(f"{source.path}: no model could be loaded"):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.path,
            config=config,
            cache_dir=source.cache_dir or None,
            ignore_mismatched_sizes=True,  # checked below, with a message of our own
            output_loading_info=True,
            trust_remote_code=False,
            **FLOAT32,
        )
    has_head = _check_weights(source.path, model, report, names, new_head)
    order = label_order(labels, names) if labels and has_head else list(range(config.num_labels))
    if labels:
        model.config.id2label = {output: label for label, output in zip(labels, order, strict=True)}
        model.config.label2id = dict(zip(labels, order, strict=True))
    classifier = Classifier(model, _load_tokenizer(source), order)
    _check_tokens(source, classifier, max_seq_length)
    return classifier


@contextmanager
def _told_as_model_error(what: str) -> Iterator[None]:
    """ModelError, of `what` and the first line of why, where files are missing or damaged."""
    try:
        yield
    except Exception as error:  # tokenizers raises nothing more special for a file of another version
        text = repr(error) if isinstance(error, KeyError) else str(error).strip()
        lines = text.splitlines() or [type(error).__name__]  # libraries explain at length
        raise ModelError(f"{what}: {lines[0][:200]}") from error


def _check_folder(path: str) -> None:
    """ModelError where a path is meant and no folder is there: it could be taken for a name on the Hub."""
    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not os.path.isdir(path):
        raise ModelError(f"{path}: no such folder; a model is a folder or a name on the Hub")


def _load_config(source: ModelSource):
    name = source.config_name or source.path
    _check_folder(source.path)
    _check_folder(name)
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise ModelError(f"{name} is no model: it holds no config.json")
    where = "" if os.path.isdir(name) else "no such folder, and on the Hub "
    if where:  # without a connection the answer takes half a minute
        logger.info("%s is no folder: looking for it on the Hub", name)
    with _told_as_model_error(f"{name}: {where}no config could be loaded"):
        config = AutoConfig.from_pretrained(name, cache_dir=source.cache_dir or None, trust_remote_code=False)
    config.__dict__.pop("auto_map", None)  # names code in the folder, which is not run: do not save it on
    return config


def _load_tokenizer(source: ModelSource):
    name = source.tokenizer_name or source.path
    _check_folder(name)
    options = {"cache_dir": source.cache_dir or None, "trust_remote_code": False}
    with _told_as_model_error(f"{name}: no tokenizer could be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} has no fast version, which is needed here")
        if source.do_lower_case and type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
            tokenizer = AutoTokenizer.from_pretrained(name, do_lower_case=True, **options)
        elif source.do_lower_case:
            logger.warning("do_lower_case is ignored: %s is not a WordPiece tokenizer", type(tokenizer).__name__)
    tokenizer.init_kwargs.pop("auto_map", None)  # as in the config
    # Without its files transformers can make a tokenizer to which every word is unknown.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"{name} holds no tokenizer: its vocabulary has no words; copy the tokenizer's files there")
    return tokenizer


def _check_weights(path: str, model, report: dict, names: list[str], new_head: bool) -> bool:
    """Whether the head that was loaded is the task's; ModelError where weights are missing that must not be."""
    if any("scc_layer" in key for key in report["unexpected_keys"]):
        raise ModelError(
            f"{path} is a checkpoint of the 2020 release; scripts/convert_to_hf_ckpt.py makes a model of it"
        )
    made_anew = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    # The pooler belongs to the head: a pre-trained encoder may lack it.
    encoder = [k for k in made_anew if k.startswith(f"{model.base_model_prefix}.") and ".pooler." not in k]
    if encoder:
        raise ModelError(f"{path}: its weights are not those that its config calls for: {', '.join(encoder)[:100]} ...")
    n_outputs = model.config.num_labels
    if not new_head:
        advice = "fine-tune it first (run_glue.py without --replacing_rate)"
        if len(names) != n_outputs:
            raise ModelError(f"{path}: its task head has {len(names)} outputs, the task needs {n_outputs}: {advice}")
        if made_anew:
            raise ModelError(f"{path} has no task head ({', '.join(made_anew)} missing): {advice}")
    if made_anew:
        logger.info("Not in the checkpoint, made anew: %s", ", ".join(made_anew))
    return len(names) == n_outputs and not made_anew


def _check_tokens(source: ModelSource, classifier: Classifier, max_seq_length: int) -> None:
    """ModelError where model and tokenizer do not fit; a missing padding token is chosen."""
    model, tokenizer = classifier.model, classifier.tokenizer
    name = source.tokenizer_name or source.path
    if tokenizer.pad_token is None:  # so are decoders published
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        model.config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{name}: the tokenizer has no token to pad rows with")
    if model.config.pad_token_id is None:  # a decoder's head finds the last token of a row by it
        model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(tokenizer.model_max_length, positions(model) or max_seq_length)
    if max_seq_length > longest:
        raise ModelError(f"{source.path} takes at most {longest} tokens, not a max_seq_length of {max_seq_length}")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ModelError(f"{name}: the tokenizer has {len(tokenizer)} tokens, more than the model embeds")


def count_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def read_labels(path: str, cache_dir: str = "") -> tuple[str, ...] | None:
    """The labels of a fine-tuned model, in the order of its outputs; None where it gives a score. ModelError as above.

    Args:
        path: of the model's folder, or its name on the Hub.
        cache_dir: for downloads.
    """
    return labels_of(_load_config(ModelSource(path, cache_dir=cache_dir)))


def output_names(config) -> tuple[str, ...]:
    """The names of the model's outputs, in their order, by `id2label`."""
    return tuple(str(config.id2label.get(output)) for output in range(config.num_labels))


def labels_of(config) -> tuple[str, ...] | None:
    """The labels in the order of the model's outputs; None where it gives a score."""
    return None if config.num_labels == 1 else output_names(config)


def places(labels: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Where each label is among the names, which are the same ones, if need be in another case; None: they are not."""
    for spelt in (str, str.lower):
        ours, theirs = [spelt(label) for label in labels], [spelt(name) for name in names]
        if sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours):
            return [theirs.index(label) for label in ours]
    return None


def label_names(config, labels: Sequence[str] | None) -> list[str]:
    """The names of the model's outputs, in their order: by `label2id` where that has the task's labels."""
    outputs = {str(name): output for name, output in (config.label2id or {}).items()}
    if labels and places(labels, list(outputs)) and sorted(outputs.values()) == list(range(len(labels))):
        return sorted(outputs, key=outputs.get)
    return list(output_names(config))


def label_order(labels: Sequence[str], names: list[str]) -> list[int]:
    """The output for each label, in a head whose outputs have these names."""
    order = places(labels, names)
    if order is None and not all(name.lower().startswith("label_") for name in names):
        logger.warning("The model calls its labels %s; they are taken as %s", ", ".join(names), ", ".join(labels))
    return list(range(len(labels))) if order is None else order


def positions(model: torch.nn.Module) -> int | None:
    """Tokens that the model has positions for; None where nothing limits them."""
    n_positions = getattr(model.config, "max_position_embeddings", None)
    if n_positions is None or n_positions < 1:  # XLNet has -1
        return None
    embedding = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding_idx = getattr(embedding, "padding_idx", None)  # RoBERTa counts positions from the one after it
    return n_positions if padding_idx is None else n_positions - padding_idx - 1
