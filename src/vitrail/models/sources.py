"""The registry of the places that models come from: the part of a name before its first slash."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from ..errors import ModelError, UnknownModelError, how_to_install
from .preprocess import Preprocess
from .vision_model import VisionModel

__all__ = ["SOURCES", "Known", "Request", "Source", "find", "for_channels_of", "source"]


@dataclass(frozen=True)
class Request:
    """What a source is asked to load: a name without the source's prefix, and how.

    `size` is the (height, width) of the input and `classes` the number of classes, None for the model's own (or those
    of the checkpoint's head); `texts` are what images are held against, for sources that have text towers. `options`
    are passed on to the library's function that builds the model; "pretrained" among them is True, False (random
    weights) or, for open_clip, the tag.
    """

    name: str
    checkpoint: str | PathLike | None = None
    size: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Known:
    """What a library's own module tells about itself, for `wrap`: guesses, which the module at work may refute."""

    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None
    forward_options: dict[str, Any] = field(default_factory=dict)
    output: str | None = None


@runtime_checkable
class Loader(Protocol):
    def __call__(self, request: Request, /) -> VisionModel: ...


@dataclass(frozen=True)
class Source:
    """One place: how to load from it, the names in it (None: it cannot be listed), and how to know its modules.

    `texts` says whether some of its models have a text tower.
    """

    load: Loader
    names: Callable[[], list[str]] | None = None
    recognise: Callable[[nn.Module], Known | None] | None = None
    texts: bool = False


SOURCES: dict[str, Source] = {}


def source(
    prefix: str,
    *,
    names: Callable[[], list[str]] | None = None,
    recognise: Callable[[nn.Module], Known | None] | None = None,
    texts: bool = False,
) -> Callable[[Loader], Loader]:
    """Register the decorated function as the loader of all models called `prefix`/…, or `prefix` alone."""

    def register(load: Loader) -> Loader:
        SOURCES[prefix] = Source(load, names, recognise, texts)
        return load

    return register


def for_channels_of(module: nn.Module, preprocess: Preprocess | None) -> Preprocess | None:
    """A library's preprocessing for the channels that the module's first convolution takes.

    None where its numbers, colour by colour, say nothing about them.
    """
    stem = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if preprocess is None or stem is None or stem.in_channels == preprocess.channels:
        return preprocess
    if stem.in_channels != 1 or len({*zip(preprocess.mean, preprocess.std, strict=True)}) > 1:
        return None
    return replace(preprocess, mean=preprocess.mean[:1], std=preprocess.std[:1])


def find(spec: str) -> tuple[Source, str]:
    """The source of a model's full name, and the name within it.

    Raises:
        UnknownModelError: for a source that is not there.
    """
    prefix, _, name = spec.partition("/")
    if prefix in SOURCES:
        return SOURCES[prefix], name
    known = ", ".join(f"{key}/…" for key in SOURCES)
    near = _near(spec)
    raise UnknownModelError(
        f"no model {spec!r}: a model's name begins with its source ({known}), as in timm/vit_base_patch16_224"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
    )


def _near(spec: str) -> list[str]:
    """Full names that end as this one does, or are spelt much like it, the likeliest first."""
    bare = spec.rpartition("/")[2] or spec
    if not bare:
        return []
    if Path(spec).is_dir():
        return [f"hf/{spec}"]
    full = {f"{prefix}/{name}": name for prefix, one in SOURCES.items() for name in (one.names() if one.names else ())}
    same = [name for name, last in full.items() if last == bare] or [
        name for name, last in full.items() if re.split(r"[.:]", last)[0] == bare
    ]
    if same:
        return same[:3]
    bases = {re.split(r"[.:]", last)[0]: name for name, last in reversed(full.items()) if last}
    close = [bases[one] for one in difflib.get_close_matches(bare, bases, n=3, cutoff=0.7)]
    return [f"hf/{spec}"] if spec.count("/") == 1 else close


def defined_in(module: nn.Module, package: str) -> bool:
    """Whether the module's class, or one that it derives from, is the package's. Imports nothing."""
    return any(base.__module__.partition(".")[0] == package for base in type(module).__mro__)


def outputs_of(head: Any) -> int | None:
    """How many numbers a head gives: those of its last linear layer; None where it has none, or is no module.

    Example:
        >>> outputs_of(nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.1), nn.Linear(6, 5))), outputs_of(nn.Identity())
        (5, None)
    """
    parts = list(head.modules()) if isinstance(head, nn.Module) else []
    counts = [count for part in parts if isinstance(count := getattr(part, "out_features", None), int)]
    return counts[-1] if counts else None


def refuse_random_head(request: Request, own: int | None) -> None:
    """Refuse another number of classes than the published weights have: the head would be random, and so the maps.

    Raises:
        ModelError: naming both numbers.
    """
    if request.classes is not None and request.classes != own:
        raise ModelError(
            f"the published weights of {request.name} have {own} classes, and a head for {request.classes} would be "
            "random: give trained weights with checkpoint=, or take random ones with pretrained=False"
        )


def missing_package(package: str, extra: str) -> ModelError:
    """The error for an optional library that is not installed."""
    return ModelError(f"{package} is not installed; install it with: {how_to_install(extra)}")
