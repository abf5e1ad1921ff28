"""Weights from a file or folder that may come from anywhere, in whatever layout a training script saved them."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .torch_file import StoredTensor, read_torch_file

__all__ = ["fingerprint", "name_some", "read_checkpoint"]

# Where training scripts put the weights, averaged ones before the last (timm's order), a teacher before its student.
_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher"),
    *("state_dict", "model", "model_state", "model_state_dict", "module"),
)
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|^opt$|^rng|loss|criterion|callback|hyper_|^args$|^config", re.IGNORECASE)
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 4  # names per kind of mismatch in a message
_DEEPEST = 6  # dictionaries within dictionaries
_IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# The first bytes of files that hold weights in another form, or none, and what to do.
_OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (
        b"GGUF",
        "a GGUF file, quantized weights for llama.cpp; give the PyTorch or safetensors file that it was made from",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5, Keras); convert its weights to PyTorch first"),
    (b"\x93NUMPY", "a NumPy array (.npy); save the weights by name with safetensors.torch.save_file(…)"),
    (b"version https://git-lfs", "the pointer that Git LFS left in the place of the weights; run: git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"7z\xbc\xaf", "an archive of 7-Zip; unpack it first"),
    (b"<!doctype", "a web page, which a failed download leaves; download the file itself"),
    (b"<html", "a web page, which a failed download leaves; download the file itself"),
)
_OTHER_SUFFIXES = {
    ".onnx": "an ONNX graph, which hides its attention; give the weights of the PyTorch module it was exported from",
    ".tflite": "a TensorFlow Lite graph; give the weights as PyTorch has them",
    ".msgpack": "a file of Flax; convert it: model.from_pretrained(…, from_flax=True).save_pretrained(…)",
    ".pb": "a TensorFlow graph; give the weights as PyTorch has them",
    ".pt2": "an exported program (torch.export), not weights; save model.state_dict() of the module it was made from",
}


def read_checkpoint(path: str | PathLike) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint by name, on the CPU; nothing in the file is ever executed.

    A `.safetensors` file, any file of `torch.save`, the index of a sharded checkpoint, or a folder as Hugging Face's
    Trainer and accelerate write it. The weights are found inside the usual dictionaries ("state_dict", "model_ema",
    "teacher" …), and the prefixes that data parallel training and `torch.compile` leave are taken off.

    Raises:
        UnsafeCheckpointError: for a pickle that holds more than weights and inert data.
        CheckpointError: for a file that is missing, cut short, or no checkpoint.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for file in _files(path):
        tensors |= _read_file(file)
    for prefix in _PREFIXES * 2:  # either may be outside the other
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def fingerprint(path: str | PathLike) -> str:
    """Returns the SHA-256 of the checkpoint's file, or of all its files one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in _files(Path(path)):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def name_some(names: Sequence[str]) -> str:
    """Returns the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name if len(name) <= 100 else f"{name[:100]}…" for name in names[:_SHOWN]) + more


# -- files -------------------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    """The files that make up the checkpoint: one, or the shards of an index."""
    try:
        there, folder, regular = path.exists(), path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name with a null character, or one too long
        raise CheckpointError(f"{str(path)!r} cannot be the name of a checkpoint: {error}") from error
    if not there:
        raise CheckpointError(f"no checkpoint at {path}")
    if folder:
        return _files(_inside(path))
    if not regular:
        raise CheckpointError(f"{path} is not a file; give the file that holds the weights")
    if path.name.endswith(".index.json"):
        return _shards(path)
    if (part := re.search(r"-(\d{5})-of-(\d{5})\.", path.name)) and int(part[2]) > 1:
        raise CheckpointError(
            f"{path} is one of {int(part[2])} parts of a checkpoint; give the folder that holds them all"
        )
    return [path]


def _inside(folder: Path) -> Path:
    """The weights in a folder as Hugging Face's libraries write it."""
    found = next((folder / name for name in _IN_FOLDER if (folder / name).is_file()), None)
    if found is not None:
        return found
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter (PEFT) and not the weights; merge it first: "
            "model.merge_and_unload().save_pretrained(…)"
        )
    if (folder / ".metadata").is_file():
        raise CheckpointError(
            f"{folder} is a distributed checkpoint; make one file of it: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth"
        )
    held = name_some(sorted(one.name for one in folder.iterdir())) or "nothing"
    raise CheckpointError(
        f"{folder} is not a file, nor a folder with {_IN_FOLDER[0]} or {_IN_FOLDER[2]} in it (it holds {held}); "
        "give the file that holds the weights"
    )


def _shards(index: Path) -> list[Path]:
    """The files that the index of a sharded checkpoint names, which lie next to it."""
    try:
        if index.stat().st_size > 64_000_000:
            raise ValueError("it is too large")
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is no index of a sharded checkpoint ({type(error).__name__}: {error})"
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{len(missing)} of {len(names)} parts of {index} are missing ({name_some(missing)})")
    return [index.parent / name for name in names]


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} could not be opened: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    start = head.lstrip().lower()
    other = next((what for magic, what in _OTHER_FILES if head.startswith(magic) or start.startswith(magic)), None)
    if other or (other := _OTHER_SUFFIXES.get(path.suffix.lower())):
        raise CheckpointError(f"{path} is {other}")
    # A safetensors file begins with the length of its header, 8 bytes, and the header's opening brace.
    if path.suffix.lower() == ".safetensors" or (head[8:9] == b"{" and not head.startswith(b"PK")):
        return _read_safetensors(path)
    if not head.startswith((b"PK", b"\x80")):
        raise CheckpointError(
            f"{path} is no checkpoint: neither a safetensors nor a PyTorch file (it begins with {head[:9]!r})"
        )
    found = _weights(read_torch_file(path), path)
    try:
        return {name: stored.tensor() for name, stored in found.items()}
    except (ValueError, RuntimeError, OverflowError) as error:  # PyTorch's own word on numbers out of bounds
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch file ({reason}); was it cut short while copying?"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        tensors = safetensors.torch.load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # its own kind, and what PyTorch says of types that it does not know
        reason = f"{path} is no whole safetensors file ({error}); was it cut short while copying?"
        raise CheckpointError(reason) from error
    if not tensors:
        raise CheckpointError(f"{path} holds nothing, and no tensors by name; save model.state_dict()")
    return tensors


# -- the weights among what a training script saves --------------------------------------------------------------------


def _weights(loaded: Any, path: Path) -> dict[str, StoredTensor]:
    """The flat dictionary of tensors inside the containers that training scripts save."""
    found = _search(loaded, _DEEPEST, set())
    if found:
        return found
    held = [str(name) for name in loaded if isinstance(name, str | int)] if isinstance(loaded, Mapping) else []
    kind = "Tensor" if isinstance(loaded, StoredTensor) else type(loaded).__name__
    what = f"a dict with {name_some(held) or 'nothing'}" if held else kind
    raise CheckpointError(f"{path} holds {what}, and no tensors by name; save model.state_dict()")


def _search(held: Any, deep: int, seen: set[int]) -> dict[str, StoredTensor]:
    """Tensors by name: in the entry that is known to hold them, here, or in all other entries together."""
    if isinstance(held, list | tuple):  # as torch.save((state_dict, epoch), …) writes it
        held = {f"{place}": one for place, one in enumerate(held[:100]) if isinstance(one, Mapping)}
    if not isinstance(held, Mapping) or not deep or id(held) in seen:
        return {}
    seen.add(id(held))  # each dictionary is looked into once, however often it is held
    for key in _WRAPPERS:
        if isinstance(held.get(key), Mapping) and (found := _search(held[key], deep - 1, seen)):
            return found
    here = {name: one for name, one in held.items() if isinstance(name, str) and isinstance(one, StoredTensor)}
    inner = {
        str(name): found
        for name, one in held.items()
        if isinstance(name, str) and not _NO_WEIGHTS.search(name) and (found := _search(one, deep - 1, seen))
    }
    if len(here) >= sum(map(len, inner.values())):  # a tensor or two next to a set of weights are none
        return here
    if len(inner) == 1:
        return next(iter(inner.values()))
    return {f"{outer}.{name}": one for outer, found in inner.items() for name, one in found.items()}
