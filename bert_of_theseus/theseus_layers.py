"""Module replacing as a list of layers.

An encoder of `transformers` walks over its list of layers (`for layer in self.layer: ...`).
`TheseusLayers` takes that list's place and hands out the layers that run this time, so the model's
own code stays as it is and any encoder that keeps its layers in a list will do.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn


class TheseusLayers(nn.Module):
    """The predecessor's layers and the successor's, walked over as one list (section 3.1 of the paper).

    The `L` predecessor layers form `S` modules of `L / S` consecutive layers; successor layer `i`
    stands in for module `i` and starts as a copy of predecessor layer `i`. In training a walk takes,
    for each module, the successor layer with probability `replacing_rate`, else the predecessor's
    layers; in evaluation it takes the successor's layers alone.

    The predecessor's layers are frozen here. They run in training mode, dropout included.

    Args:
        predecessor: the model's own list of `L` layers; kept, not copied.
        scc_n_layer: `S`, the number of successor layers; divides `L`.
        seed: of the draws, which come from a generator of their own, so that they are the same on any
            device and whatever else uses random numbers.

    Attributes:
        predecessor, successor: `nn.ModuleList`s of `L` and `S` layers.
        replacing_rate: the probability in force, a float in (0, 1]; 1.0 until it is set.
        generator: the `torch.Generator` (CPU) of the draws.

    Raises:
        ValueError: `scc_n_layer` does not divide the number of layers.
    """

    def __init__(self, predecessor: nn.ModuleList, scc_n_layer: int, seed: int = 42):
        super().__init__()
        scc_n_layer = successor_size(len(predecessor), scc_n_layer)
        self.predecessor = predecessor.requires_grad_(False)
        self.successor = copy.deepcopy(predecessor[:scc_n_layer]).requires_grad_(True)
        self.replacing_rate = 1.0
        self.generator = torch.Generator().manual_seed(seed)
        self._fixed_draw: list[bool] | None = None

    def set_replacing_rate(self, replacing_rate: float) -> None:
        """Set the probability with which each module is replaced; ValueError outside (0, 1]."""
        if not 0 < replacing_rate <= 1:
            raise ValueError(f"the replacing rate is a probability in (0, 1], not {replacing_rate}")
        self.replacing_rate = float(replacing_rate)

    def draw_replacements(self) -> list[bool]:
        """Draw `r_i ~ Bernoulli(replacing_rate)` for each of the `S` modules: True = the successor's layer runs."""
        return (torch.rand(len(self.successor), generator=self.generator) < self.replacing_rate).tolist()

    def fix_draw(self, replaced: Sequence[bool] | None) -> None:
        """Make every later walk in training use this draw (`S` bools); with None each walk draws anew.

        A draw belongs to a micro-batch: fix it where one micro-batch takes several forward passes, or
        where the caller needs to know it beforehand.

        Raises:
            ValueError: `replaced` does not hold one bool a module.
        """
        if replaced is not None and len(replaced) != len(self.successor):
            raise ValueError(f"a draw for {len(self.successor)} modules has as many bools, not {len(replaced)}")
        self._fixed_draw = None if replaced is None else [bool(r) for r in replaced]

    def __iter__(self) -> Iterator[nn.Module]:
        """Walk over the layers that run in this forward pass: `y_{i+1} = r_i * scc_i(y_i) + (1 - r_i) * prd_i(y_i)`."""
        if not self.training:
            return iter(self.successor)
        replaced = self.draw_replacements() if self._fixed_draw is None else self._fixed_draw
        predecessor = list(self.predecessor)
        module_size = len(predecessor) // len(self.successor)
        path: list[nn.Module] = []
        for i, successor_layer in enumerate(self.successor):
            path += [successor_layer] if replaced[i] else predecessor[i * module_size : (i + 1) * module_size]
        return iter(path)


def find_layers(model: nn.Module) -> str:
    """Dotted name of the model's list of layers: the `nn.ModuleList` of `num_hidden_layers` equal blocks.

    Args:
        model: a `transformers` model.

    Raises:
        ValueError: the model has no such list, several of them, or is compressed already.
    """
    kind = type(model).__name__
    if any(isinstance(module, TheseusLayers) for module in model.modules()):
        raise ValueError(f"this {kind} is compressed already: export its successor first")
    if not hasattr(model, "config"):
        raise ValueError(f"{kind} is not a model of transformers: it has no config")
    n_layer = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layer and len({type(layer) for layer in module}) == 1
    ]
    # A list inside the layers of another one is a part of those layers.
    names = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if len(names) != 1:
        found = f"{len(names)} of them ({', '.join(names)})" if names else "none"
        raise ValueError(f"{kind} should hold one list of {n_layer} equal layers (num_hidden_layers); found {found}")
    return names[0]


def successor_size(n_layer: int, scc_n_layer: int | None = None) -> int:
    """The number `S` of successor layers for `n_layer` predecessor layers: `scc_n_layer`, or half of them.

    Raises:
        ValueError: the predecessor's layers cannot be cut into `S` equal modules.
    """
    size = n_layer // 2 if scc_n_layer is None else scc_n_layer
    if size < 1 or n_layer % size:
        divisors = [str(d) for d in range(1, n_layer + 1) if n_layer % d == 0]
        raise ValueError(f"{n_layer} layers do not make {size} equal modules: scc_n_layer can be {', '.join(divisors)}")
    return size


def compress(model: nn.Module, scc_n_layer: int | None = None, seed: int = 42) -> TheseusLayers:
    """Put `TheseusLayers` in the place of the model's list of layers, and freeze all but the successor.

    The model is changed in place; its config stays the predecessor's until `export_successor`.
    Embeddings, pooler and head are frozen too, and shared by the successor (section 3.2 of the paper).

    Args:
        model: a fine-tuned model of `transformers` with a task head.
        scc_n_layer: number of successor layers, a divisor of the predecessor's; default: half of them.
        seed: of the draws.

    Raises:
        ValueError: the list of layers cannot be found, or not be cut into `scc_n_layer` modules.
    """
    name = find_layers(model)
    parent_name, _, attribute = name.rpartition(".")
    predecessor = model.get_submodule(name)
    layers = TheseusLayers(predecessor, successor_size(len(predecessor), scc_n_layer), seed)
    model.requires_grad_(False)
    setattr(model.get_submodule(parent_name), attribute, layers.train(predecessor.training))
    layers.successor.requires_grad_(True)
    return layers


def export_successor(model: nn.Module) -> nn.Module:
    """A copy of the successor as an ordinary model of `S` layers, in evaluation mode, all of it trainable.

    It is of the predecessor's class, its config counts `S` layers, and it shares nothing with `model`,
    which stays as it is.

    Args:
        model: a model that `compress` has changed.

    Raises:
        ValueError: the model is not compressed.
    """
    layers = next((module for module in model.modules() if isinstance(module, TheseusLayers)), None)
    if layers is None:
        raise ValueError(f"this {type(model).__name__} is not compressed: call compress(model) first")
    # With this entry the copy of the model finds the successor's layers already copied where it would
    # copy `layers`: the predecessor's are never duplicated.
    copies: dict[int, object] = {}
    copies[id(layers)] = copy.deepcopy(layers.successor, copies)
    successor = copy.deepcopy(model, copies)
    successor.config.get_text_config().num_hidden_layers = len(layers.successor)
    return successor.requires_grad_(True).eval()
