"""The file of an explanation: its tensors in a .safetensors file, all the rest as JSON text in the header."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .errors import ExplanationFileError, OutputFileError
from .files import atomic_write, open_regular
from .objectives import Rivals
from .provenance import from_metadata
from .views import Spread

if TYPE_CHECKING:
    from .explanation import Explanation

__all__ = ["contents_of", "explanation_of", "read_explanation", "write_explanation"]

Result = TypeVar("Result")

# One key in the header: safetensors promises no order for several, and equal results shall make equal files.
HEADER = "vitrail"
VERSION = 4  # of a spread; of rivals it is 3, with guides 2, else 1, which older readers know

_PARTS = {"rivals": Rivals, "spread": Spread}
ENDLESS = "spread.error"  # is infinite where nothing tells of it


def write_explanation(path: Path, text: Mapping[str, Any], tensors: Mapping[str, Tensor | None]) -> None:
    """Writes a file whole or not at all, always the same bytes; tensors that are None are left out.

    Raises:
        OutputFileError: when it cannot be written, `text` is not JSON, or a tensor holds NaN or infinity.
    """
    try:
        header = json.dumps(text, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OutputFileError(f"cannot save to {path}: the metadata are not plain JSON values ({error})") from error
    for name, tensor in tensors.items():
        if tensor is not None and _is_refused(name, tensor):  # nor would `read_explanation` take it
            raise OutputFileError(f"cannot save to {path}: {name} hold NaN or infinity")
    stored = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items() if t is not None}
    with atomic_write(path) as file:
        file.write(to_safetensors(stored, metadata={HEADER: header}))


def _is_refused(name: str, tensor: Tensor) -> bool:
    return bool(tensor.isnan().any() if name == ENDLESS else not tensor.isfinite().all())


def read_explanation(path: Path, build: Callable[[dict[str, Any], dict[str, Tensor]], Result]) -> Result:
    """Reads a file's header and tensors, and returns what `build` makes of them.

    Raises:
        ExplanationFileError: when the file is missing, damaged, no explanation or of a later version, or when `build`
            finds in it what no explanation holds.
    """
    try:
        open_regular(path, 2**40).close()
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            names = file.keys() if header is not None else ()
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
        name = str(path).replace("\0", "\\0")
        raise ExplanationFileError(f"cannot read {name}: {error}") from error
    if header is None:
        raise ExplanationFileError(
            f"{path} is a safetensors file, but not an explanation: its header has no {HEADER!r} entry"
        )
    try:
        text = json.loads(header)
        if text["version"] > VERSION:
            raise ExplanationFileError(
                f"{path} is an explanation file of version {text['version']}, "
                f"this Vitrail reads up to {VERSION}; update Vitrail"
            )
        return build(text, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        said = f"it has no entry {error}" if isinstance(error, KeyError) else error
        raise ExplanationFileError(f"{path} is not an explanation that Vitrail can read: {said}") from error


def contents_of(ex: "Explanation") -> tuple[dict[str, Any], dict[str, Tensor | None]]:
    """Returns what a file keeps of an explanation: the text of the header, and the tensors."""
    text: dict[str, Any] = {
        "version": 4 if ex.spread is not None else 3 if ex.rivals is not None else 2 if ex.guided else 1,
        "method": ex.method,
        "objective": ex.objective,
        "signed": ex.signed,
        "class_names": ex.class_names,
        "metadata": ex.provenance.as_metadata(),
    }
    if ex.guided:
        text["guided"] = [part.provenance.as_metadata() for part in ex.guided]
    tensors = _tensors(ex)
    for number, part in enumerate(ex.guided):
        tensors |= {f"guided.{number}.{name}": tensor for name, tensor in _tensors(part).items()}
    return text, tensors


def _tensors(ex: "Explanation") -> dict[str, Tensor | None]:
    own = {name: getattr(ex, name) for name in ("scores", "logits", "target", "against", "images")}
    for part in _PARTS:
        if (held := getattr(ex, part)) is not None:
            own |= {f"{part}.{name}": tensor for name, tensor in vars(held).items()}
    return own


def explanation_of(kind: type["Explanation"], text: dict[str, Any], tensors: dict[str, Tensor]) -> "Explanation":
    """Returns the explanation that `contents_of` took apart.

    Raises:
        KeyError, TypeError, ValueError: for what no explanation holds.
    """
    fields, guided = fields_of(text), []
    for number, metadata in enumerate(text.get("guided", ())):
        own = _taken(tensors, f"guided.{number}.")
        check_tensors(own)
        guided.append(kind(**own, **fields, provenance=from_metadata(metadata)))
    provenance = from_metadata(text["metadata"])
    check_tensors(tensors, functions=bool(provenance.functions))
    parts: dict[str, Any] = {
        name: part(**held) if (held := _taken(tensors, f"{name}.")) else None for name, part in _PARTS.items()
    }
    return kind(**tensors, **fields, **parts, provenance=provenance, guided=tuple(guided))


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """Takes the tensors whose names begin with `prefix` out, and returns them under the rest of their names."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def fields_of(text: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a file's header that hold for all its maps.

    Raises:
        ValueError: for an entry of another kind.
    """
    if "kind" in text:
        raise ValueError("it is of generated words, which GenerationExplanation.load reads")
    names, guided = text["class_names"], text.get("guided", [])
    fields = {key: text[key] for key in ("method", "objective", "signed")}
    for key, value, kind in (
        *((key, fields[key], str) for key in ("method", "objective")),
        ("signed", fields["signed"], bool),
        ("metadata", text["metadata"], dict),
        ("guided", guided, list),
        ("class_names", [] if names is None else names, list),
        *(("guided", metadata, dict) for metadata in (guided if isinstance(guided, list) else ())),
        *(("class_names", name, str) for name in (names if isinstance(names, list) else ())),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"{key} holds {type(value).__name__}, expected {kind.__name__}")
    return {**fields, "class_names": None if names is None else tuple(names)}


def check_tensors(tensors: Mapping[str, Tensor], *, functions: bool = False) -> None:
    """Refuses what no explanation holds, and a file may; where functions were asked about, target −1 stands for them.

    Raises:
        ValueError: naming it.
    """
    scores, logits = tensors["scores"], tensors["logits"]
    if scores.ndim not in (3, 4) or logits.ndim != 2 or 0 in scores.shape[-2:] or not logits.shape[1]:
        raise ValueError(
            f"scores are {tuple(scores.shape)} and logits {tuple(logits.shape)}, expected (batch, rows, cols) or "
            "(batch, targets, rows, cols), and (batch, classes)"
        )
    for name, tensor in tensors.items():
        kinds = (torch.uint8,) if name == "images" else (torch.int32, torch.int64)
        real = name in ("scores", "logits", "rivals.scores", "rivals.weights", "spread.answers", ENDLESS)
        if not (tensor.is_floating_point() if real else tensor.dtype in kinds):
            raise ValueError(f"{name} are {tensor.dtype}")
        if real and _is_refused(name, tensor):
            raise ValueError(f"{name} hold NaN or infinity")
        if name in ("target", "against", "rivals.classes") and tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
            least = -1 if functions and name == "target" else 0
            if low < least or high >= logits.shape[1]:
                raise ValueError(f"{name} {low if low < least else high} is no class of {logits.shape[1]}")
