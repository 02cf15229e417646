"""Rows of the training files that no run sees, on which all are scored in the end."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from bert_of_theseus import compress, load_successor
from bert_of_theseus.classifier import Classifier, load_classifier
from bert_of_theseus.data.scores import compute_metrics, predictions_of
from bert_of_theseus.data.task import Examples
from bert_of_theseus.run.device import first_device
from bert_of_theseus.run.files import write_whole
from bert_of_theseus.run.folder import BEST, input_length
from glue_processors import TASKS, GlueTask, read_dev_sets, read_examples

PHRASES = {"SST-2"}  # of which a training row is a sentence or one of its phrases
HELD_OUT, LEAST_HELD_OUT = 0.1, 300  # rows of the training file that are held out: the share, and at least so many


def hold_out(task: GlueTask, glue_dir: Path, data_dir: Path, held_out_dir: Path) -> None:
    """Write the task's files without the held-out rows, and these as a dev set in a folder of their own.

    Of SST-2 whole sentences are held out, each with the phrases that no longer one has: else nearly every held-out
    sentence would have a phrase among the training rows. Of single sentences those that a training row contains are in
    neither.
    """
    examples = read_examples(task, glue_dir, "train")
    read_dev_sets(task, glue_dir)  # what is wrong with them is told here
    with open(glue_dir / task.train, "rb") as file:
        lines = [line for line in file if line.strip()]
    head, rows = (lines[:1], lines[1:]) if task.header else ([], lines)
    whole = longest_containing(examples.first) if task.folder in PHRASES else range(len(rows))
    by_hash = sorted(range(len(rows)), key=lambda row: (hashlib.sha256(rows[whole[row]]).digest(), row))
    held_out = set(by_hash[: min(len(rows) // 2, max(LEAST_HELD_OUT, int(HELD_OUT * len(rows))))])
    scored = held_out
    if examples.second is None:
        trained_on = "\n".join(text for row, text in enumerate(examples.first) if row not in held_out)
        scored = {row for row in held_out if examples.first[row] not in trained_on}
    data_dir.mkdir(parents=True, exist_ok=True)
    held_out_dir.mkdir(parents=True, exist_ok=True)
    write_whole(data_dir / task.train, b"".join([*head, *(row for i, row in enumerate(rows) if i not in held_out)]))
    for name in task.dev_tasks or [task.name]:
        write_whole(data_dir / TASKS[name].dev, (glue_dir / TASKS[name].dev).read_bytes())
    write_whole(held_out_dir / task.dev, b"".join([*head, *(row for i, row in enumerate(rows) if i in scored)]))


def longest_containing(texts: Sequence[str]) -> list[int]:
    """Of each text the number of the longest text that contains its words in a row, which may be itself."""
    found: dict[tuple[str, ...], int] = {}
    words = [tuple(text.split()) for text in texts]
    for i in sorted(range(len(texts)), key=lambda i: -len(words[i])):
        if words[i] not in found:  # else all its phrases are those of a longer one
            found[words[i]] = i
            ends = range(1, len(words[i]) + 1)
            for phrase in (words[i][start:end] for end in ends for start in range(end)):
                found.setdefault(phrase, i)
    return [found[of] for of in words]


def score_on(
    examples: Examples, task: GlueTask, folder: Path, predecessor: Path | None = None
) -> dict[str, dict[str, float]]:
    """The metrics of a run's model on some rows: "last", of its last step, and "best", where it has kept that.

    With the run's predecessor also "module 1", "module 2", ..., each standing alone among the predecessor's own.
    """
    scores, length = {}, input_length(None, folder)

    def score(classifier: Classifier) -> dict[str, float]:
        classifier.model.to(first_device(use_cuda=True))
        logits = classifier.predict_examples(examples, length, 32)
        return compute_metrics(task, predictions_of(task, logits), examples.labels)

    for which, path in (("last", folder), ("best", folder / BEST)):
        if (path / "config.json").exists():
            scores[which] = score(load_classifier(str(path), task.labels))
    if predecessor:
        successor = load_classifier(str(folder), task.labels).model
        for i in range(successor.config.num_hidden_layers):
            model = load_classifier(str(predecessor), task.labels)
            replace_one_module(model.model, successor, i)
            scores[f"module {i + 1}"] = score(model)
    return scores


def replace_one_module(model: torch.nn.Module, successor: torch.nn.Module, i: int) -> None:
    """Make a predecessor a model of which module `i` is the successor's, and all others its own (table 5)."""
    layers = compress(model, successor.config.num_hidden_layers)
    load_successor(model, successor)
    size = len(layers.predecessor) // len(layers.successor)
    before, after = layers.predecessor[: i * size], layers.predecessor[(i + 1) * size :]
    layers.successor = torch.nn.ModuleList([*before, layers.successor[i], *after])
    model.eval()
