"""Loading a model by name, and the registry of sources: a source is the part of the name before its first slash."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import ModelError, UnknownModelError, how_to_install
from ..outputs import check_kind
from .class_names import ClassNames, named
from .preprocess import Preprocess
from .preprocess_adapters import adapt
from .similarity import check_texts, refuse_texts
from .vision_model import VisionModel

__all__ = ["SOURCES", "Recognised", "Request", "Source", "find", "for_channels_of", "list_models", "load", "source"]


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
class Recognised:
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
    recognise: Callable[[nn.Module], Recognised | None] | None = None
    texts: bool = False


SOURCES: dict[str, Source] = {}


def source(
    prefix: str,
    *,
    names: Callable[[], list[str]] | None = None,
    recognise: Callable[[nn.Module], Recognised | None] | None = None,
    texts: bool = False,
) -> Callable[[Loader], Loader]:
    """Registers the decorated function as the loader of all models called `prefix`/…, or `prefix` alone."""

    def register(load: Loader) -> Loader:
        SOURCES[prefix] = Source(load, names, recognise, texts)
        return load

    return register


def for_channels_of(module: nn.Module, preprocess: Preprocess | None) -> Preprocess | None:
    """Returns a library's preprocessing for the channels that the module's first convolution takes.

    None where its numbers, colour by colour, say nothing about them.
    """
    stem = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if preprocess is None or stem is None or stem.in_channels == preprocess.channels:
        return preprocess
    if stem.in_channels != 1 or len({*zip(preprocess.mean, preprocess.std, strict=True)}) > 1:
        return None
    return replace(preprocess, mean=preprocess.mean[:1], std=preprocess.std[:1])


def find(spec: str) -> tuple[Source, str]:
    """Returns the source of a model's full name, and the name within it.

    Raises:
        UnknownModelError: for a source that is not there.
    """
    prefix, _, name = spec.partition("/")
    if prefix in SOURCES:
        return SOURCES[prefix], name
    known = ", ".join(f"{key}/…" for key in sorted(SOURCES))
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
    full = {
        f"{prefix}/{name}": name
        for prefix, one in sorted(SOURCES.items())
        for name in (one.names() if one.names else ())
    }
    same = [name for name, last in full.items() if last == bare] or [
        name for name, last in full.items() if re.split(r"[.:]", last)[0] == bare
    ]
    if same:
        return same[:3]
    bases = {re.split(r"[.:]", last)[0]: name for name, last in reversed(full.items()) if last}
    close = [bases[one] for one in difflib.get_close_matches(bare, bases, n=3, cutoff=0.7)]
    return [f"hf/{spec}"] if spec.count("/") == 1 else close


def defined_in(module: nn.Module, package: str) -> bool:
    """Returns whether the module's class, or one that it derives from, is the package's. Imports nothing."""
    return any(base.__module__.partition(".")[0] == package for base in type(module).__mro__)


def outputs_of(head: Any) -> int | None:
    """Returns the outputs of a head's last linear layer; None where it has none, or is not a module.

    Example:
        >>> outputs_of(nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.1), nn.Linear(6, 5))), outputs_of(nn.Identity())
        (5, None)
    """
    parts = list(head.modules()) if isinstance(head, nn.Module) else []
    counts = [count for part in parts if isinstance(count := getattr(part, "out_features", None), int)]
    return counts[-1] if counts else None


def refuse_random_head(request: Request, own: int | None) -> None:
    """Refuses another number of classes than the published weights have: the head would be random, and so the maps.

    Raises:
        ModelError: naming both numbers.
    """
    if request.classes is not None and request.classes != own:
        raise ModelError(
            f"the published weights of {request.name} have {own} classes, and a head for {request.classes} would be "
            "random: give trained weights with checkpoint=, or take random ones with pretrained=False"
        )


def missing_package(package: str, extra: str) -> ModelError:
    """Returns the error for an optional library that is not installed."""
    return ModelError(f"{package} is not installed; install it with: {how_to_install(extra)}")


@torch.inference_mode(False)  # weights that are made in it could never be explained
def load(
    spec: str | PathLike[str],
    *,
    checkpoint: str | PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    preprocess: Any = None,
    class_names: ClassNames | None = None,
    texts: Sequence[str] | None = None,
    output: str | None = None,
    **options: Any,
) -> VisionModel:
    """Loads a model by its full name: `timm/…`, `hf/…` (an id or a folder), `torchvision/…`, `open_clip/…`.

    Without `checkpoint` the library fetches its published weights, the only time that Vitrail reaches the network;
    with it they are read from that file, or from a folder as Hugging Face's libraries write it. The number of classes
    is that of the checkpoint's head, unless `num_classes` says otherwise (0: no head, the embedding). `size` is the
    input size in pixels, one side or (height, width), where it is to differ from the model's own; `img_size` is the
    same. `pretrained=False` keeps random weights; other options go to the library. `preprocess`, `class_names` and
    `output` replace the model's own, as in `wrap`. The model comes in evaluation mode, in float32 unless `dtype`
    (`torch.bfloat16` or "bfloat16") says otherwise, on the CPU unless `device` does.

    With `texts`, a CLIP model (`open_clip/…`, or `hf/` and a folder of a CLIP or SigLIP model) is asked how well an
    image fits each text: the logits are the scaled similarities, and the classes go by the texts themselves. The text
    tower runs once, here.

    Raises:
        UnknownModelError: for a source or a model that is not there.
        CheckpointError: for a file that cannot be read, with kinds of its own for pickles and weights that do not fit.
        NoTextTowerError: for texts given to a model that reads none.
        OptionError: for an unknown kind of output.
        TextError, SameClassError: for an empty or overlong text, and for one that is there twice.
        ModelError: where the library fails, or an argument makes no sense.

    Example:
        >>> model = load("timm/vit_tiny_patch16_224", pretrained=False)
        >>> model.preprocess.size, model.class_name(340)
        ((224, 224), 'zebra')
    """
    check_kind(output)
    spec = fspath(spec)
    source, name = find(spec)
    if "img_size" in options:
        if size is not None:
            raise ModelError(f"size={size} and img_size={options['img_size']} mean the same; give one of them")
        size = options.pop("img_size")
    precision = _precision(dtype)
    names = None if class_names is None else named(class_names)
    if num_classes is not None and (isinstance(num_classes, bool) or num_classes < 0):
        raise ModelError(f"num_classes is the number of classes, 0 or more, not {num_classes!r}")
    if texts is not None:
        texts = check_texts(texts)
        if class_names is not None:
            raise ModelError("texts= are the classes' names already; leave class_names= out")
        if not source.texts:
            raise refuse_texts(spec, "is an image classifier without a text tower")
    place = _device(device)
    model = source.load(Request(name, checkpoint, _pair(size), options, texts, num_classes))
    module = model.module.to(place, precision).eval()
    metadata = {"model": model.name, **model.metadata, "torch": torch.__version__}
    model = replace(model, module=module, metadata={key: str(value) for key, value in metadata.items()})
    if preprocess is not None:
        model = replace(model, preprocess=adapt(preprocess))
    if names is not None:
        model = replace(model, class_names=names, guessed=model.guessed - {"class_names"})
    if output is not None:
        model = replace(model, output=output)
    return model


def list_models(pattern: str = "*") -> list[str]:
    """Returns the full names of all models that match a wildcard pattern, with or without the source in front.

    timm's names with a tag ("vit_tiny_patch16_224.augreg_in21k_ft_in1k") are listed only when the pattern has a dot.
    Hugging Face's hub is not listed, nor are libraries that are not installed.

    Example:
        >>> list_models("timm/vit_tiny_patch16_?84"), list_models("vit_b_16")
        (['timm/vit_tiny_patch16_384'], ['torchvision/vit_b_16'])
    """
    listed = []
    for prefix, source in sorted(SOURCES.items()):
        # Importing a library to list it takes seconds, so only where the pattern can match.
        reachable = "/" not in pattern or fnmatch.fnmatchcase(prefix, pattern.partition("/")[0])
        for name in source.names() if source.names is not None and reachable else []:
            full = f"{prefix}/{name}" if name else prefix
            wanted = "." in pattern or prefix != "timm" or "." not in name
            if wanted and (fnmatch.fnmatchcase(full, pattern) or fnmatch.fnmatchcase(name, pattern)):
                listed.append(full)
    return listed


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ModelError(f"size is one length in pixels or (height, width), not {size!r}")
    return pair


def _device(device: str | torch.device | None) -> torch.device:
    try:
        device = torch.device("cpu" if device is None else device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; a device that this machine or build lacks
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {str(device)!r} cannot be used: {reason}") from error
    if device.type == "meta":
        raise ModelError(
            "device 'meta' holds shapes and no numbers, so nothing can be explained on it; take cpu or cuda"
        )
    return device


_PRECISIONS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_SHORT = {"fp32": "float32", "float": "float32", "fp64": "float64", "double": "float64"}
_SHORT |= {"bf16": "bfloat16", "fp16": "float16", "half": "float16"}


def _precision(dtype: str | torch.dtype | None) -> torch.dtype:
    """The floating point type of that name, in PyTorch's words or the usual short ones; float32 for None."""
    word = "float32" if dtype is None else str(dtype).removeprefix("torch.").lower()
    word = _SHORT.get(word, word)
    if word not in _PRECISIONS:
        raise ModelError(f"dtype {dtype} is not a floating point type that models run in; {', '.join(_PRECISIONS)} are")
    return _PRECISIONS[word]
