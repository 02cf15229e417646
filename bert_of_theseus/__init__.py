"""Compress a fine-tuned Transformer encoder by progressive module replacing.

The method of Xu, Zhou, Ge, Wei and Zhou, "BERT-of-Theseus: Compressing BERT by Progressive Module
Replacing", EMNLP 2020 (arXiv 2002.02925).
"""

from bert_of_theseus.theseus_layers import (
    TheseusLayers,
    compress,
    export_successor,
    find_layers,
    load_successor,
    successor_size,
)

__all__ = [
    "ReplacementCallback",
    "TheseusLayers",
    "compress",
    "export_successor",
    "find_layers",
    "load_successor",
    "successor_size",
]


def __getattr__(name: str):
    """`ReplacementCallback`, when it is asked for: the Trainer takes a second to import, which nothing else needs."""
    if name == "ReplacementCallback":
        from bert_of_theseus.trainer import ReplacementCallback

        return ReplacementCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
