#!/usr/bin/env python
"""Turn a checkpoint of the 2020 release of BERT-of-Theseus into an ordinary model of its successor's layers.

The release saved the predecessor's layers beside the successor's, and its config counts the predecessor's. Without a
warning, transformers loads such a folder as the predecessor. This script writes the successor alone: a model that
run_glue.py, scripts/predict_glue.py and transformers can load.
"""

import argparse
import json
import logging
import re
import shutil
import sys
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bert_of_theseus.run.command_line import OneLineParser, UserError, log_plainly, one_line_errors
from bert_of_theseus.run.files import whole_files
from glue_processors import TASKS

logger = logging.getLogger("convert_to_hf_ckpt")

WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"
TOKENIZER_FILES = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="convert_to_hf_ckpt.py", description=__doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help=f"the release's folder: {WEIGHTS}, {CONFIG}, vocab")
    parser.add_argument("target", metavar="DST", type=Path, help="the folder to write; not there yet, or empty")
    return parser.parse_args(argv)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file of torch.save, by name. No code in the file is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or holds more than tensors; nothing in it was run") from error


def successor_weights(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    """The successor's weights, named as in `transformers`, and its number of layers."""
    weights, layers = {}, set()
    for name, tensor in tensors.items():
        layer = re.fullmatch(r"((?:bert\.)?encoder\.)(scc_)?layer\.(\d+)\.(.+)", name)
        if layer and layer[2]:
            weights[f"{layer[1]}layer.{layer[3]}.{layer[4]}"] = tensor
            layers.add(layer[3])
        elif not layer and not name.endswith("position_ids"):  # a constant that versions of 2020 saved
            weights[name] = tensor
    return weights, len(layers)


def read_config(path: Path, n_layer: int) -> BertConfig:
    """The config for so many layers, without options that are gone, and with the names of the task's labels."""
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    config = BertConfig(**{name: value for name, value in old.items() if name in BertConfig().to_dict()})
    config.num_hidden_layers = n_layer
    config.num_labels = old.get("num_labels", config.num_labels)  # the release left `id2label` at two
    task = TASKS.get(old.get("finetuning_task"))
    if task and task.labels and len(task.labels) == config.num_labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: i for i, label in enumerate(task.labels)}
    return config


def load_successor(source: Path) -> BertModel | BertForSequenceClassification:
    """The successor in a folder that the release wrote; UserError where there is none."""
    for name in (WEIGHTS, CONFIG):
        if not (source / name).is_file():
            raise UserError(f"{source} is no checkpoint of the 2020 release: it holds no {name}")
    weights, n_layer = successor_weights(read_tensors(source / WEIGHTS))
    if not n_layer:
        raise UserError(f"{source} is no checkpoint of the 2020 release: no scc_layer in its weights; load it as it is")
    model_class = BertForSequenceClassification if "classifier.weight" in weights else BertModel
    model = model_class(read_config(source / CONFIG, n_layer))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error)[:200]
        raise UserError(f"{source}: its weights are not those that its {CONFIG} calls for: {reason}") from error
    return model


def convert(source: Path, target: Path) -> None:
    """Write the successor in the release's folder `source` to `target`; UserError where that cannot be done."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} is there already and not an empty folder; name another")
    model = load_successor(source)
    with whole_files(target) as temporary:
        model.save_pretrained(temporary)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
    if not (target / "vocab.txt").is_file():
        logger.warning("%s holds no tokenizer: copy vocab.txt from the predecessor's folder to %s", source, target)
    print(f"{target}: {type(model).__name__} of {model.config.num_hidden_layers} layers")


def main(args: argparse.Namespace) -> None:
    log_plainly()
    with one_line_errors("convert_to_hf_ckpt.py"):
        convert(args.source, args.target)


if __name__ == "__main__":
    main(parse_args())
