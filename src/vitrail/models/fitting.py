"""Weights fitted to a module: under its names, in its shapes, with as many classes; whole, or not at all."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, CheckpointMismatchError, ModelError
from .checkpoint import name_some, read_checkpoint

__all__ = ["build_and_fill", "fill", "head_classes", "mismatch", "unprefixed"]

Repair = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

_AVERAGED = ("ema", "teacher", "averaged", "swa", "target_encoder", "momentum")
# What only a training run needs: decoders of masked autoencoders, projections of self-distillation, running counts.
_TRAINING_ONLY = re.compile(
    r"(^|\.)(decoder_\w+|decoder|mask_token|n_averaged|prototypes|head\.mlp|head\.last_layer)(\.|$)"
)
_log = logging.getLogger("vitrail")


def build_and_fill(
    build: Callable[[int | None], nn.Module],
    path: Path,
    *,
    repairs: Callable[[nn.Module], Sequence[Repair]] = lambda _: (),
    classes: int | None = None,
) -> nn.Module:
    """Returns a module with as many classes as the checkpoint's head has, filled from it.

    `build` takes the number of classes, None for the model's own; `repairs` gives those of a module, as for `fill`.
    `classes` is the number that the user asked for, which is not departed from.

    Raises:
        CheckpointError: as `read_checkpoint` and `fill`.
    """
    tensors = read_checkpoint(path)
    if classes is None:
        with suppress(ModelError, RuntimeError), torch.device("meta"):  # a look at the names and shapes alone
            bare = build(None)
            wanted = {name: tensor.shape for name, tensor in bare.state_dict().items()}
            classes = _only_the_head(wanted, _nearest(wanted, tensors, repairs(bare), str(path)))
    module = build(classes)
    fill(module, tensors, str(path), repairs=repairs(module))
    return module


def fill(module: nn.Module, tensors: Mapping[str, Tensor], label: str, *, repairs: Sequence[Repair] = ()) -> None:
    """Loads the tensors into the module, all of them and nothing left over, or leave it as it was.

    A prefix that all names carry is taken off, or one that the backbone's carry; what stands outside of it (a loss, a
    student next to its teacher), and what only training needs, is left out. `repairs` translate the tensors to the
    module's names and shapes (other resolutions, other libraries' names); the first whose result fits is used. `label`
    names the file in messages.

    Raises:
        CheckpointMismatchError: with the counts and the first names of what is missing, unexpected or of another shape.
    """
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    nearest = _nearest(wanted, tensors, repairs, label)
    if reason := _disagreements(wanted, nearest):
        classes = _only_the_head(wanted, nearest)
        remedy = f"the file was made for {classes} classes, so load the model with num_classes={classes}"
        raise mismatch(label, reason, remedy if classes else _replaced_head(wanted, nearest))
    module.load_state_dict(dict(nearest))
    if len(nearest) < len(tensors):
        _log.info("%s: %d tensors that only training needs were left out", label, len(tensors) - len(nearest))


def _nearest(
    wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], repairs: Sequence[Repair], label: str
) -> Mapping[str, Tensor]:
    """The tensors under the names and in the shapes that come nearest to the module's."""
    plain: list[Mapping[str, Tensor]] = []
    repaired: list[Mapping[str, Tensor]] = []
    for view in _views(tensors, wanted, label):
        plain.append(view)
        for repair in (*repairs, dict):
            try:
                found = dict(repair(dict(view)))
            except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
                continue  # made for other checkpoints than this one
            if not _disagreements(wanted, found):
                return found
            repaired.append(found)
    return min((*plain, *repaired), key=lambda one: _distance(wanted, one))


def unprefixed(tensors: Mapping[str, Tensor], wanted: Mapping[str, Any], label: str) -> Mapping[str, Tensor]:
    """Returns the tensors under the names of a module (`wanted`), as far as a prefix alone stands between them."""
    return max(_views(tensors, wanted, label), key=lambda view: (sum(name in wanted for name in view), -len(view)))


def head_classes(wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], classes: int) -> int | None:
    """Returns the number of classes in the file, where the head of a model of `classes` differs from the file's in that
    alone.

    Example:
        >>> head_classes({"head.bias": torch.Size([1000])}, {"head.bias": torch.zeros(5)}, 1000)
        5
    """
    differing = {name for name in wanted if name in tensors and wanted[name] != tensors[name].shape}
    owners = {name.rpartition(".")[0] for name in differing if wanted[name] and wanted[name][0] == classes}
    # Weight and bias both: a head of which only one has another length is damaged.
    heads = [name for name in wanted if name in tensors and wanted[name] and name.rpartition(".")[0] in owners]
    counts = {tensors[name].shape[0] if tensors[name].ndim else 0 for name in heads}
    same = all(wanted[name][1:] == tensors[name].shape[1:] for name in heads) and differing.issuperset(heads)
    return counts.pop() if same and len(counts) == 1 and 0 not in counts else None


def mismatch(label: str, reason: str, remedy: str = "") -> CheckpointMismatchError:
    """Returns the error for weights that do not fit, in one wording for all sources."""
    remedy = remedy or "was it made for another model, size or number of classes?"
    return CheckpointMismatchError(f"{label} does not fit the model: {reason}; {remedy}")


def _views(tensors: Mapping[str, Tensor], wanted: Mapping[str, Any], label: str) -> Iterator[Mapping[str, Tensor]]:
    """The tensors as they are, without what only training needs, and without a prefix."""
    yield tensors
    kept = {name: tensor for name, tensor in tensors.items() if name in wanted or not _TRAINING_ONLY.search(name)}
    if len(kept) < len(tensors):
        yield kept
    for prefix in _prefixes(tensors, wanted, label):
        inside = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
        outside = {name: one for name, one in kept.items() if not name.startswith(prefix)}
        if outside and not inside.keys() & outside.keys():
            yield inside | outside  # the backbone's names carry it, and the head's do not
        yield inside
        yield {name: one for name, one in inside.items() if name in wanted or not _TRAINING_ONLY.search(name)}


def _prefixes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Any], label: str) -> list[str]:
    """The prefixes under which most of the module's names are found; of several, that of the averaged weights."""
    counts: dict[str, int] = {}
    for name in tensors:
        parts = name.split(".")
        for place in range(1, min(len(parts), 8)):
            if ".".join(parts[place:]) in wanted:
                prefix = ".".join(parts[:place]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most > sum(name in tensors for name in wanted)]
    averaged = [prefix for prefix in best if any(word in prefix.lower() for word in _AVERAGED)]
    best = averaged if averaged else best
    if len(best) > 1 and most > 1:
        raise CheckpointError(
            f"{label} holds several sets of weights that could be meant ({name_some(sorted(best))}); "
            "save the one that is"
        )
    # A name that all carry says nothing, whatever follows: repairs may still be needed to know the rest.
    first = next(iter(tensors), "").partition(".")[0] + "."
    common = (
        [first]
        if all(name.startswith(first) for name in tensors) and not any(name.startswith(first) for name in wanted)
        else []
    )
    return list(dict.fromkeys([*best, *common]))


def _differences(
    wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, that are unexpected, and that have another shape."""
    return (
        [name for name in wanted if name not in tensors],
        [name for name in tensors if name not in wanted],
        [name for name, shape in wanted.items() if name in tensors and tensors[name].shape != shape],
    )


def _distance(wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """How far the tensors are from the module's: by name first, and then by shape."""
    missing, unexpected, misshapen = _differences(wanted, tensors)
    return len(missing) + len(unexpected), len(misshapen)


def _disagreements(wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> str:
    missing, unexpected, misshapen = _differences(wanted, tensors)
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} tensors are missing ({name_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are unexpected ({name_some(unexpected)})")
    if misshapen:
        shapes = [
            f"{name} is {tuple(tensors[name].shape)} in the file and {tuple(wanted[name])} in the model"
            for name in misshapen
        ]
        parts.append(f"{len(misshapen)} have another shape ({name_some(shapes)})")
    return ", ".join(parts)


def _only_the_head(wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> int | None:
    """The file's number of classes, where nothing but that differs."""
    missing, unexpected, misshapen = _differences(wanted, tensors)
    sizes = {wanted[name][0] for name in misshapen if wanted[name]}
    if (
        missing
        or unexpected
        or len(sizes) != 1
        or not all("head" in name or "classifier" in name for name in misshapen)
    ):
        return None
    return head_classes({name: wanted[name] for name in misshapen}, tensors, sizes.pop())


def _replaced_head(wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> str:
    """The remedy where nothing but the head's names differ, and "" otherwise."""
    missing, unexpected, misshapen = _differences(wanted, tensors)
    heads = [*missing, *misshapen]
    if not heads or not all(re.search(r"head|classifier|^fc", name) for name in heads):
        return ""
    if unexpected and all(re.search(r"head|classifier|(^|\.)fc", name) for name in unexpected):
        return "its head is another than the model's: build the module as you trained it, and give it to vitrail.wrap"
    if not unexpected:
        return "it holds no classifier: for its embedding's numbers ask for 0 classes, num_classes=0"
    return ""
