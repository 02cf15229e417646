#!/usr/bin/env python
"""Turn a checkpoint of the 2020 release of BERT-of-Theseus into an ordinary model of its successor's layers.

The release saved the predecessor's layers beside the successor's, under a config that counts the predecessor's:
transformers loads such a folder in silence as the predecessor. What this script writes is the successor alone, which
run_glue.py, scripts/predict_glue.py and everything else that reads models of transformers can load.
"""

import argparse
import contextlib
import json
import logging
import re
import shutil
import sys
from pathlib import Path

from command_line import OneLineParser, log_plainly, one_line_errors

logger = logging.getLogger("convert_to_hf_ckpt")

WEIGHTS = "pytorch_model.bin"
TOKENIZER_FILES = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="convert_to_hf_ckpt.py", description=__doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help=f"the release's folder: {WEIGHTS}, config.json, vocab")
    parser.add_argument("target", metavar="DST", type=Path, help="the folder to write; not there yet, or empty")
    args = parser.parse_args(argv)
    for name in (WEIGHTS, "config.json"):
        if not (args.source / name).is_file():
            parser.error(f"{args.source} is no checkpoint of the 2020 release: it holds no {name}")
    if args.target.exists() and not (args.target.is_dir() and not any(args.target.iterdir())):
        parser.error(f"{args.target} is there already and not an empty folder; name another")
    return args


if __name__ == "__main__":
    # Parsed before the heavy imports, so that --help and a mistyped path answer at once.
    ARGS = parse_args()

# ruff: noqa: E402
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bert_of_theseus.classifier import UserError, check_archive, check_counts, in_short
from bert_of_theseus.files import whole_files
from glue_processors import find_task


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save, old format or new, by name.

    Raises:
        UserError: it is damaged or holds something else. Nothing of a pickle's code is run.
    """
    try:
        check_archive(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the unpickler raise
        raise UserError(f"{path} is damaged or holds more than tensors; nothing in it was run") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"{path} does not hold a model's weights: a table of names and tensors was expected")
    return tensors


def successor_weights(tensors: dict[str, torch.Tensor], source: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The successor's weights under the names of `transformers`, and its number of layers."""
    weights, layers = {}, set()
    for name, tensor in tensors.items():
        layer = re.fullmatch(r"((?:bert\.)?encoder\.)(scc_)?layer\.(\d+)\.(.+)", name)
        if layer is None and not name.endswith("position_ids"):  # a constant that versions of 2020 saved
            weights[name] = tensor
        elif layer and layer[2]:
            weights[f"{layer[1]}layer.{layer[3]}.{layer[4]}"] = tensor
            layers.add(int(layer[3]))
    if not layers:
        raise UserError(f"{source} is no checkpoint of the 2020 release: no scc_layer in its weights; load it as it is")
    return weights, len(layers)


def read_config(path: Path, n_layer: int) -> BertConfig:
    """The old config for so many layers, without options that are gone, with the labels' names as its task has them."""
    try:
        old = json.loads(path.read_text())
        check_counts(old)
        config = BertConfig(**{name: value for name, value in old.items() if name in BertConfig().to_dict()})
        config.num_hidden_layers = n_layer
        # The label names of 2020 stayed at the two of a new config whatever the number of labels was.
        config.num_labels = old.get("num_labels", config.num_labels)
    except Exception as error:  # whatever is wrong with the file
        raise UserError(f"{path}: no config of a BERT could be read: {error}") from error
    with contextlib.suppress(KeyError):  # a task that is none of GLUE's
        task = find_task(str(old.get("finetuning_task")))
        if task.num_labels == config.num_labels:
            config.problem_type = "single_label_classification" if task.labels else "regression"
            config.id2label = dict(enumerate(task.labels or ["score"]))
            config.label2id = {label: i for i, label in config.id2label.items()}
    return config


def convert(source: Path, target: Path) -> None:
    """Write the successor that the release's folder `source` holds to `target`; UserError where it cannot be."""
    weights, n_layer = successor_weights(read_tensors(source / WEIGHTS), source)
    config = read_config(source / "config.json", n_layer)
    model_class = BertForSequenceClassification if "classifier.weight" in weights else BertModel
    try:
        with torch.device("meta"):  # before memory goes where the config calls for more than there is
            model_class(config).load_state_dict(weights, assign=True)
        model = model_class(config)
        model.load_state_dict(weights)
    except Exception as error:
        raise UserError(
            f"{source}: its weights are not those of a {model_class.__name__}: {str(error)[:200]}"
        ) from error
    with whole_files(target) as temporary:
        try:
            model.save_pretrained(temporary)
        except OSError:
            raise
        except Exception as error:  # an option that means something else now
            raise UserError(f"{source / 'config.json'}: {in_short(error)}") from error
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{target}: {model_class.__name__} of {n_layer} layers, {n_parameters:,} parameters")
    if not (source / TOKENIZER_FILES[0]).is_file():
        logger.warning("%s holds no %s: copy the predecessor's to %s", source, TOKENIZER_FILES[0], target)


def main(args: argparse.Namespace) -> None:
    log_plainly()
    with one_line_errors("convert_to_hf_ckpt.py", UserError):
        convert(args.source, args.target)


if __name__ == "__main__":
    main(ARGS)
