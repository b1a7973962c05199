"""First weights of a model: those that fit, under the names that it has; the classifier may be another."""

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

HEAD_STD = 0.001  # of a new classifier's weights beside a trained backbone
NEARLY_ALL = 0.9  # of a model's tensors must be found under a prefix for it to count as one

log = logging.getLogger(__name__)


def load_matching_weights(model: nn.Module, location: str, architecture: str | None = None) -> None:
    """Load what `location` names into the model; the classifier may have other classes.

    Position embeddings are resampled and the first convolution's channels summed where the model of this
    configuration differs in them, as timm does for its own weights. A prefix that the names of all tensors have on
    one side only is left out.

    Args:
        model: takes the weights.
        location: see `mlops_img.models.weights_location.find_weights`.
        architecture: timm's name of the model, None for another. There is a warning where the weights name another.

    Raises:
        UserError: no weights there, or those of another architecture.
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
    """Draw a classifier that did not come with the weights from N(0, `HEAD_STD`), with a bias of 0.

    Some families of timm draw it so wide that the first loss is several times log(classes), and its gradients
    damage the backbone before the classifier has learned anything.

    Args:
        model: its backbone has its weights.
        new: names of the tensors that the weights did not hold.
        source: where the weights came from, for the log.
    """
    if not new:
        return
    log.info("model.weights: new tensors, not in the %s: %s", source, ", ".join(new))
    for name in classifier_names(model):
        layers = [f"{name}.{part}".rstrip(".") for part, _ in model.get_submodule(name).named_modules()]
        matrices = [layer for layer in layers if f"{layer}.weight" in new and _weight(model, layer).ndim > 1]
        # Of a classifier of several layers only the last: two small ones in a row would learn very slowly.
        for layer in matrices[-1:]:
            nn.init.normal_(_weight(model, layer), std=HEAD_STD)
            if f"{layer}.bias" in new:
                nn.init.zeros_(model.get_parameter(f"{layer}.bias"))


def head_tensors(model: nn.Module) -> list[str]:
    """Return the names of the classifier's tensors."""
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
    """Take out of a tensor's name what torch.compile and DistributedDataParallel put in, in any order."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _matched(model: nn.Module, given: dict[str, Tensor], location: str) -> dict[str, Tensor] | None:
    """Return the weights under the model's names, or None if they do not fit.

    Raises:
        UserError: they fit under more than one prefix.
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
            f"model.weights: {location} holds this architecture more than once, under {' and '.join(fits)}. "
            "Save the tensors of one of them"
        )
    for prefix in averaged or fits:
        left = [name for name in given if not name.startswith(prefix)]
        others = f", and the tensors without it: {len(left)}, e.g. {left[0]}" if left else ""
        log.info("model.weights: left out the prefix %s of the names in the file%s", prefix, others)
        return fits[prefix]
    for prefix in _prefixes(given, own):
        outer = {f"{prefix}{name}": tensor for name, tensor in given.items()}
        if (state := _converted_to_fit(model, outer)) is not None:
            log.info("model.weights: put the prefix %s before the names in the file", prefix)
            return state
    return None


def _prefixes(short: Iterable[str], long: Iterable[str]) -> list[str]:
    """Return the prefixes with which nearly all of the short names are among the long ones, e.g. model."""
    short, long = set(short), list(long)
    found = Counter(name[:place] for name in long for place in _after_dots(name) if name[place:] in short)
    return [prefix for prefix, count in found.items() if count >= NEARLY_ALL * (len(short) - 4)]


def _after_dots(name: str) -> Iterator[int]:
    return (place + 1 for place, letter in enumerate(name) if letter == ".")


def _converted_to_fit(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    if not _misfits(model, state):
        return state
    state = _converted(model, state)
    return None if _misfits(model, state) else state


def _misfits(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Name the tensors that differ in shape or that only one side has, the classifier's apart."""
    own = model.state_dict()
    head = tuple(f"{name}." for name in classifier_names(model))
    return [
        name
        for name in [*own, *(name for name in state if name not in own)]
        if not _fits(own.get(name), state.get(name))
        and not name.startswith(head)
        # Counters and tables of indices come and go between versions, and hold nothing learnt.
        and any(tensors[name].is_floating_point() for tensors in (own, state) if name in tensors)
    ]


def _fits(own: Tensor | None, given: Tensor | None) -> bool:
    if own is None or given is None or own.shape != given.shape:
        return False
    return given.is_floating_point() or not own.is_floating_point()  # quantized weights need their scales


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state as timm converts weights of another image size, number of channels or age."""
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    weight = f"{first}.weight"
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        converted = convert(dict(state), model) if convert is not None else dict(state)
        wanted = model.state_dict().get(weight)
        if weight in converted and wanted is not None and converted[weight].shape[1] == 3:
            converted[weight] = adapt_input_conv(wanted.shape[1], converted[weight])
    except Exception:  # made for weights of this architecture, it fails on others in any way
        return state
    return converted


def _difference(model: nn.Module, given: dict[str, Tensor], named: str | None) -> str:
    """Say why the weights do not fit the model, with an example."""
    own, state = model.state_dict(), _converted(model, given)
    pair = _same_shapes(own, given)
    if pair is not None:
        return (
            "has tensors of the same shapes as the model, under other names, "
            f"e.g. {pair[1]} in the file and {pair[0]} in the model. Rename them"
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
        f"{shapes[1]} in the file. Set model.name (and model.kwargs) to what was trained"
    )


def _same_shapes(own: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[str, str] | None:
    """Return a pair of names that may mean the same tensor, if all shapes of the model are those of the file.

    One matrix, a classifier's, may differ.
    """
    ours, theirs = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.ndim > 1} for tensors in (own, given)
    )
    counts, other = Counter(ours.values()), Counter(theirs.values())
    if (counts - other).total() > 1 or (other - counts).total() > 1:
        return None
    pairs = [
        (name, match)
        for name, shape in ours.items()
        for match, their_shape in theirs.items()
        if shape == their_shape and name not in given and match not in own
    ]
    return min(pairs, key=lambda pair: counts[ours[pair[0]]], default=None)


def _refuse_non_finite(model: nn.Module, state: dict[str, Tensor], location: str) -> None:
    for name, _ in model.named_parameters():
        if name in state and not state[name].to(torch.float32).isfinite().all():
            raise UserError(
                f"model.weights: {location}: tensor {name} holds NaN or infinity: its training had failed. "
                "Use an earlier checkpoint"
            )


def _warn_of_other_architecture(location: str, named: str, built: str) -> None:
    if named.partition(".")[0] != built.partition(".")[0]:
        log.warning(
            "model.weights: %s is of the architecture %s, and the model is %s: all shapes fit, yet the two may "
            "compute differently (models with tf_ pad otherwise). Use model.name=%s if that is meant",
            location,
            named,
            built,
            named,
        )
