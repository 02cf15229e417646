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
from bert_of_theseus.trainer import ReplacementCallback

__all__ = [
    "ReplacementCallback",
    "TheseusLayers",
    "compress",
    "export_successor",
    "find_layers",
    "load_successor",
    "successor_size",
]
