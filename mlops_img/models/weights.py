"""Load initial weights into a model whose classifier or tensor names may differ from those of the weights."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mlops_img.errors import UserError
from mlops_img.models.weights_location import find_weights

HEAD_STD = 0.001  # standard deviation of the weights of a new classifier on a pretrained backbone
NEARLY_ALL = 0.9  # fraction of the model's tensors that a common prefix must have

log = logging.getLogger(__name__)


def load_matching_weights(model: nn.Module, location: str, architecture: str | None = None) -> None:
    """Load the weights at `location` into the model; the classifier may have other classes.

    As timm does for its own weights, position embeddings are resampled and the channels of the first convolution are
    summed if the model differs in them. A prefix that the tensor names have only in the file or only in the model is
    ignored.

    Args:
        model: the model to load the weights into.
        location: see `mlops_img.models.weights_location.find_weights`.
        architecture: timm's name of the model, None if it is not timm's. A warning is logged if the weights are of
            another architecture.

    Raises:
        UserError: there are no weights, or they are those of another architecture.
    """
    weights = find_weights(location)
    given = {_without_wrappers(name): tensor for name, tensor in weights.state.items()}
    own = model.state_dict()
    state = _matched(model, given, location)
    if state is None:
        raise UserError(f"model.weights: {location} {_difference(model, given, weights.architecture)}")
    fitting = {name: tensor for name, tensor in state.items() if _fits(own.get(name), tensor)}
    _refuse_non_finite(model, fitting, location)
    if architecture is not None and weights.architecture is not None:
        _warn_of_other_architecture(location, weights.architecture, architecture)
    model.load_state_dict(fitting, strict=False)
    start_head_small(model, [name for name in own if name not in fitting and own[name].is_floating_point()], "file")


def start_head_small(model: nn.Module, new: list[str], source: str) -> None:
    """Initialize a classifier without pretrained weights: standard deviation `HEAD_STD` and bias 0.

    Some models of timm initialize it with so large a standard deviation that the first loss is several times
    log(classes). The large gradients then damage the backbone before the classifier has learned anything.

    Args:
        model: a model whose backbone has pretrained weights.
        new: names of the tensors that the weights do not contain.
        source: source of the weights, for the log.
    """
    if not new:
        return
    log.info("model.weights: new tensors, not in the %s: %s", source, ", ".join(new))
    for name in classifier_names(model):
        layers = [f"{name}.{part}".rstrip(".") for part, _ in model.get_submodule(name).named_modules()]
        matrices = [layer for layer in layers if f"{layer}.weight" in new and _weight(model, layer).ndim > 1]
        # Only the last layer of a classifier: several layers of small weights in sequence learn very slowly.
        for layer in matrices[-1:]:
            nn.init.normal_(_weight(model, layer), std=HEAD_STD)
            if f"{layer}.bias" in new:
                nn.init.zeros_(model.get_parameter(f"{layer}.bias"))


def head_tensors(model: nn.Module) -> list[str]:
    """Return the names of the tensors of the classifier."""
    head = tuple(f"{name}." for name in classifier_names(model))
    return [name for name in model.state_dict() if name.startswith(head)]


def classifier_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that map features to logits."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or []
    if name:
        return [name] if isinstance(name, str) else list(name)
    for kind in (nn.Linear, nn.Conv2d):
        layers = [name for name, module in model.named_modules() if isinstance(module, kind)]
        if layers:
            return layers[-1:]
    return []


def _weight(model: nn.Module, layer: str) -> Tensor:
    return model.get_parameter(f"{layer}.weight")


def _without_wrappers(name: str) -> str:
    """Remove the prefixes of torch.compile and DistributedDataParallel from the name of a tensor."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _matched(model: nn.Module, given: dict[str, Tensor], location: str) -> dict[str, Tensor] | None:
    """Return the weights with the model's tensor names, or None if they do not fit.

    Raises:
        UserError: the weights fit with more than one prefix.
    """
    if (state := _converted_to_fit(model, given)) is not None:
        return state
    own = model.state_dict()
    fits = {}
    for prefix in _prefixes(own, given):
        inner = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
        if (state := _converted_to_fit(model, inner)) is not None:
            fits[prefix] = state
    averaged = [prefix for prefix in fits if "ema" in prefix.lower()]
    if len(fits) > 1 and len(averaged) != 1:
        raise UserError(
            f"model.weights: {location} contains this architecture more than once, with prefixes "
            f"{' and '.join(fits)}. Save the tensors of one of them"
        )
    for prefix in averaged or fits:
        left = [name for name in given if not name.startswith(prefix)]
        others = f", and ignored {len(left)} tensors without it, e.g. {left[0]}" if left else ""
        log.info("model.weights: removed the prefix %s from the names in the file%s", prefix, others)
        return fits[prefix]
    for prefix in _prefixes(given, own):
        outer = {f"{prefix}{name}": tensor for name, tensor in given.items()}
        if (state := _converted_to_fit(model, outer)) is not None:
            log.info("model.weights: added the prefix %s to the names in the file", prefix)
            return state
    return None


def _prefixes(short: Iterable[str], long: Iterable[str]) -> list[str]:
    """Return the prefixes, e.g. "model.", with which nearly all short names are among the long names."""
    short, long = set(short), list(long)
    found = Counter(name[:end] for name in long for end in _after_dots(name) if name[end:] in short)
    return [prefix for prefix, count in found.items() if count >= NEARLY_ALL * (len(short) - 4)]


def _after_dots(name: str) -> Iterator[int]:
    return (index + 1 for index, letter in enumerate(name) if letter == ".")


def _converted_to_fit(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    if not _misfits(model, state):
        return state
    state = _converted(model, state)
    return None if _misfits(model, state) else state


def _misfits(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors, except the classifier's, that differ in shape or are missing on one side."""
    own = model.state_dict()
    head = tuple(f"{name}." for name in classifier_names(model))
    return [
        name
        for name in [*own, *(name for name in state if name not in own)]
        if not _fits(own.get(name), state.get(name))
        and not name.startswith(head)
        # Integer tensors (counters, index tables) differ between versions and are not learned.
        and any(tensors[name].is_floating_point() for tensors in (own, state) if name in tensors)
    ]


def _fits(own: Tensor | None, given: Tensor | None) -> bool:
    if own is None or given is None or own.shape != given.shape:
        return False
    return given.is_floating_point() or not own.is_floating_point()  # quantized weights need their scales


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights for another image size, number of channels or version of timm as timm does."""
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    weight = f"{first}.weight"
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        converted = convert(dict(state), model) if convert is not None else dict(state)
        wanted = model.state_dict().get(weight)
        if weight in converted and wanted is not None and converted[weight].shape[1] == 3:
            converted[weight] = adapt_input_conv(wanted.shape[1], converted[weight])
    except Exception:  # timm's converters raise errors of any type for weights of another architecture
        return state
    return converted


def _difference(model: nn.Module, given: dict[str, Tensor], named: str | None) -> str:
    """Return why the weights do not fit the model, with an example."""
    own, state = model.state_dict(), _converted(model, given)
    pair = _same_shapes(own, given)
    if pair is not None:
        return (
            "has tensors of the same shapes as the model, but with other names, "
            f"e.g. {pair[1]} in the file and {pair[0]} in the model. Rename the tensors"
        )
    misfits = _misfits(model, state)
    wrong = misfits[0]
    shapes = [
        f"{tuple(tensors[wrong].shape)} {tensors[wrong].dtype}".removesuffix(" torch.float32")
        if wrong in tensors
        else "missing"
        for tensors in (own, state)
    ]
    return (
        f"holds the weights of another architecture{f' ({named})' if named else ''}: {len(misfits)} of "
        f"{len(own.keys() | state.keys())} tensors do not fit, e.g. {wrong} is {shapes[0]} in the model and "
        f"{shapes[1]} in the file. Set model.name (and model.kwargs) to those of the weights"
    )


def _same_shapes(own: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[str, str] | None:
    """Return a pair of names that may mean the same tensor, if the model and the file have tensors of equal shapes.

    The shape of one matrix, that of the classifier, may differ.
    """
    own_shapes, file_shapes = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.ndim > 1} for tensors in (own, given)
    )
    counts, other = Counter(own_shapes.values()), Counter(file_shapes.values())
    if (counts - other).total() > 1 or (other - counts).total() > 1:
        return None
    pairs = [
        (name, match)
        for name, shape in own_shapes.items()
        for match, file_shape in file_shapes.items()
        if shape == file_shape and name not in given and match not in own
    ]
    return min(pairs, key=lambda pair: counts[own_shapes[pair[0]]], default=None)


def _refuse_non_finite(model: nn.Module, state: dict[str, Tensor], location: str) -> None:
    for name, _ in model.named_parameters():
        if name in state and not state[name].to(torch.float32).isfinite().all():
            raise UserError(
                f"model.weights: {location}: tensor {name} contains NaN or infinity, so its training diverged. "
                "Use an earlier checkpoint"
            )


def _warn_of_other_architecture(location: str, named: str, built: str) -> None:
    if named.partition(".")[0] != built.partition(".")[0]:
        log.warning(
            "model.weights: %s is of architecture %s, but the model is %s. All shapes fit, but the two may compute "
            "different results (tf_ models use other padding). Use model.name=%s for the architecture of the weights",
            location,
            named,
            built,
            named,
        )
