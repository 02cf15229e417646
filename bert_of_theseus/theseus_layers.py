"""Module replacing as a list of layers.

An encoder of `transformers` walks over its list of layers (`for layer in self.layer: ...`).
`TheseusLayers` takes that list's place and hands out the layers that run this time, so the model's
own code stays as it is and any encoder that keeps its layers in a list will do.
"""

import copy
import inspect
import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn


class TheseusLayers(nn.Module):
    """The predecessor's layers and the successor's, walked over as one list (section 3.1 of the paper).

    The `L` predecessor layers form `S` modules of `L / S` consecutive layers; successor layer `i`
    stands in for module `i` and starts as a copy of predecessor layer `i`. In training a walk takes,
    for each module, the successor layer with probability `replacing_rate`, else the predecessor's
    layers; in evaluation it takes the successor's layers alone. Where `compress` has put it into a
    model, one walk belongs to one forward pass of the module that holds it, which may iterate, index
    and slice as it likes; elsewhere each iteration is a walk of its own.

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
        # The layers' configs stay the model's own: what is set there later, the kind of attention, say, holds for all.
        configs = {id(m.config): m.config for m in predecessor.modules() if hasattr(m, "config")}
        self.successor = copy.deepcopy(predecessor[:scc_n_layer], configs).requires_grad_(True)
        self.replacing_rate = 1.0
        self.generator = torch.Generator().manual_seed(seed)
        self._fixed_draw: list[bool] | None = None
        self._path: list[nn.Module] | None = None  # of the forward pass under way

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

    def get_extra_state(self) -> torch.Tensor:
        """The state of `generator`, (bytes,) uint8: a `state_dict` holds it, and loading it continues the draws."""
        return self.generator.get_state()

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Go on with the draws from what `get_extra_state` gave."""
        self.generator.set_state(state.cpu())

    def _draw_path(self) -> list[nn.Module]:
        """The layers of a new walk: `y_{i+1} = r_i * scc_i(y_i) + (1 - r_i) * prd_i(y_i)`."""
        if not self.training:
            return list(self.successor)
        replaced = self.draw_replacements() if self._fixed_draw is None else self._fixed_draw
        predecessor = list(self.predecessor)
        module_size = len(predecessor) // len(self.successor)
        path: list[nn.Module] = []
        for i, successor_layer in enumerate(self.successor):
            path += [successor_layer] if replaced[i] else predecessor[i * module_size : (i + 1) * module_size]
        return path

    def _known_path(self) -> list[nn.Module]:
        if self._path is None and self.training:
            raise TypeError("which layers run in training is drawn by the forward pass: outside it, iterate")
        return self._draw_path() if self._path is None else self._path

    def __iter__(self) -> Iterator[nn.Module]:
        """Walk over the layers that run in this forward pass."""
        return iter(self._draw_path() if self._path is None else self._path)

    def __len__(self) -> int:
        """The number of layers that run in this forward pass; TypeError in training outside one."""
        return len(self._known_path())

    def __getitem__(self, index: int | slice) -> nn.Module | list[nn.Module]:
        """The layers that run in this forward pass, by position; TypeError in training outside one."""
        return self._known_path()[index]

    def __bool__(self) -> bool:
        return True  # whatever its length


# The hooks look for the list in the module they are called with: in a replica it is another one.
def _start_walk(owner: nn.Module, inputs: tuple) -> None:
    layers = next(child for child in owner.children() if isinstance(child, TheseusLayers))
    layers._path = layers._draw_path()


def _end_walk(owner: nn.Module, inputs: tuple, output: object) -> None:
    layers = next(child for child in owner.children() if isinstance(child, TheseusLayers))
    layers._path = None


def find_layers(model: nn.Module) -> str:
    """Dotted name of the model's list of layers: the `nn.ModuleList` of `num_hidden_layers` equal blocks.

    Args:
        model: a `transformers` model.

    Raises:
        ValueError: the model has no such list, several of them, is an encoder-decoder, runs its layers by
            their numbers or treats them by their place in the list, or is compressed already.
    """
    kind = type(model).__name__
    if any(isinstance(module, TheseusLayers) for module in model.modules()):
        raise ValueError(f"this {kind} is compressed already: export its successor first")
    if not hasattr(model, "config"):
        raise ValueError(f"{kind} is not a model of transformers: it has no config")
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} has an encoder and a decoder; only a model with one list of layers can be compressed")
    n_layer = getattr(config, "num_hidden_layers", None)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = [name for name, module in lists.items() if len(module) == n_layer]
    # A list inside the layers of another one is a part of those layers.
    found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    kinds = [{type(layer) for layer in lists[name]} for name in found]
    if len(found) != 1 or len(kinds[0]) > 1 or nn.ModuleList in kinds[0]:
        what = f"{len(found)} of them ({', '.join(found)})" if len(found) > 1 else "none"
        if len(found) == 1:
            what = f"{found[0]} of {', '.join(sorted(k.__name__ for k in kinds[0]))}"
        raise ValueError(
            f"{kind} should hold one list of {n_layer} equal layers (num_hidden_layers), none of them shared; "
            f"found {what}"
        )
    _check_walk(model.get_submodule(found[0].rpartition(".")[0]), config)
    return found[0]


def _check_walk(owner: nn.Module, config) -> None:
    """ValueError where `owner` ties layers to their place in the list, which a walk with replaced modules shifts.

    Models differ in how they walk over their layers, and only their code tells.
    """
    try:
        code = inspect.getsource(type(owner).forward)
    except OSError:  # no source on this machine
        return
    kind = type(owner).__name__
    if re.search(r"in range\(self\.(config\.)?(num_hidden_layers|n_layers?)\)", code):
        raise ValueError(f"{kind} runs its layers by their numbers in the config: none of them can be left out")
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if len(kinds) > 1 and re.search(r"\blayer_types\[", code):
        raise ValueError(
            f"{kind} mixes layers of several kinds ({', '.join(kinds)}) and tells them by their place in the list, "
            "which replacing shifts"
        )


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

    The model is changed in place; its config stays the predecessor's until `export_successor`, but that
    `use_cache` is off.
    Embeddings, pooler and head are frozen too, and shared by the successor (section 3.1 of the paper).

    Args:
        model: a fine-tuned model of `transformers` with a task head.
        scc_n_layer: number of successor layers, a divisor of the predecessor's; default: half of them.
        seed: of the draws.

    Raises:
        ValueError: the list of layers cannot be found or replaced (`find_layers`), or not be cut into
            `scc_n_layer` modules.
    """
    name = find_layers(model)
    parent_name, _, attribute = name.rpartition(".")
    owner, predecessor = model.get_submodule(parent_name), model.get_submodule(name)
    config = model.config.get_text_config()
    scc_n_layer = successor_size(len(predecessor), scc_n_layer)
    _cut(copy.deepcopy(config), scc_n_layer)  # now, not after training, should it fail
    layers = TheseusLayers(predecessor, scc_n_layer, seed)
    model.requires_grad_(False)
    setattr(owner, attribute, layers.train(predecessor.training))
    layers._hooks = [
        owner.register_forward_pre_hook(_start_walk),
        owner.register_forward_hook(_end_walk, always_call=True),
    ]
    # A key-value cache has one place for each layer number, which successor and predecessor layers share.
    layers._use_cache = getattr(config, "use_cache", None)
    if layers._use_cache:
        config.use_cache = False
    return layers


def _cut(config, n_layer: int) -> None:
    """Make the config one of `n_layer` layers, its lists with an entry a layer included; ValueError if it won't be."""
    before = config.num_hidden_layers
    cut = {
        name: value[:n_layer]
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == before and ("layer" in name or "attention" in name)
    }
    config.num_hidden_layers = n_layer  # under its own name for this config
    for name, value in cut.items():
        setattr(config, name, value)
    try:
        again = type(config).from_dict(config.to_dict()).num_hidden_layers
    except Exception as error:  # whatever the config's own checks raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{type(config).__name__} cannot be made one of {n_layer} layers: {reason}") from error
    if again != n_layer:
        raise ValueError(f"{type(config).__name__} cannot be made one of {n_layer} layers: reloaded, it has {again}")


def export_successor(model: nn.Module) -> nn.Module:
    """A copy of the successor as an ordinary model of `S` layers, in evaluation mode, all of it trainable.

    It is of the predecessor's class, its config counts `S` layers, and it shares nothing with `model`,
    which stays as it is.

    Args:
        model: a model that `compress` has changed.

    Raises:
        ValueError: the model is not compressed.
    """
    layers = _theseus_layers(model)
    # With this entry the copy of the model finds the successor's layers already copied where it would
    # copy `layers`: the predecessor's are never duplicated.
    copies: dict[int, object] = {}
    copies[id(layers)] = copy.deepcopy(layers.successor, copies)
    successor = copy.deepcopy(model, copies)
    for hook in copy.deepcopy(layers._hooks, copies):  # the copy's own
        hook.remove()
    config = successor.config.get_text_config()
    _cut(config, len(layers.successor))
    if layers._use_cache:
        config.use_cache = True
    return successor.requires_grad_(True).eval()


def load_successor(model: nn.Module, successor: nn.Module) -> None:
    """Give `model` the weights of its successor, those that it shares with the predecessor included.

    The other way than `export_successor`; the predecessor's layers and the state of the draws stay as they are.

    Args:
        model: a model that `compress` has changed.
        successor: what `export_successor` made of it, or of one like it.

    Raises:
        ValueError: the model is not compressed, or its successor is not one like this.
    """
    layers = _theseus_layers(model)
    own = next(name for name, module in model.named_modules() if module is layers)
    state = {
        f"{own}.successor{name.removeprefix(own)}" if name.startswith(f"{own}.") else name: tensor
        for name, tensor in successor.state_dict().items()
    }
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"this is no successor of this {type(model).__name__}: its layers differ") from error
    missing = [name for name in missing if not name.startswith((f"{own}.predecessor.", f"{own}._extra_state"))]
    if missing or unexpected:
        raise ValueError(f"this is no successor of this {type(model).__name__}: {[*missing, *unexpected][0]}")


def _theseus_layers(model: nn.Module) -> TheseusLayers:
    layers = next((module for module in model.modules() if isinstance(module, TheseusLayers)), None)
    if layers is None:
        raise ValueError(f"this {type(model).__name__} is not compressed: call compress(model) first")
    return layers
