"""What a run's model scores on the held-out rows."""

from pathlib import Path

import torch

from bert_of_theseus import compress, load_successor
from bert_of_theseus.classifier import Classifier, load_classifier
from bert_of_theseus.data.scores import compute_metrics, predictions_of
from bert_of_theseus.data.task import Examples
from bert_of_theseus.run.device import first_device
from bert_of_theseus.run.folder import BEST, input_length
from glue_processors import GlueTask


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
