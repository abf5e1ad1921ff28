"""Tensors and plain values in one safetensors file: what a record and an interrupted run are written as."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import OutputFileError, VitrailError
from ..files import atomic_write

__all__ = ["TransferFileError", "read_tensors", "write_tensors"]


class TransferFileError(VitrailError):
    """The file is missing, damaged, of another kind, or does not belong to the question asked."""


def write_tensors(
    path: str | os.PathLike[str], kind: str, version: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write whole or not at all; `kind` is the one key of the header, under which the values stand as JSON.

    Raises:
        OutputFileError: for another suffix than .safetensors, values that are not plain JSON, or a full disk.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OutputFileError(f"cannot save to {path}: it is written as tensors; name it .safetensors")
    try:
        header = json.dumps({"version": version, **values}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OutputFileError(f"cannot save to {path}: the metadata are not plain JSON values ({error})") from error
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write(to_safetensors(stored, metadata={kind: header}))
    return path


def read_tensors(path: str | os.PathLike[str], kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_tensors` wrote, on the CPU and bit for bit.

    Raises:
        TransferFileError: when the file is missing, damaged, of another kind or of a later version.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            header = (file.metadata() or {}).get(kind)
            tensors = {name: file.get_tensor(name).clone() for name in (file.keys() if header is not None else ())}
    except (OSError, SafetensorError) as error:
        raise TransferFileError(f"cannot read {os.fspath(path)}: {error}") from error
    if header is None:
        raise TransferFileError(f"{os.fspath(path)} is a safetensors file, but its header has no {kind!r} entry")
    try:
        values = json.loads(header)
        found = values.pop("version")
    except (AttributeError, KeyError, ValueError) as error:
        raise TransferFileError(f"{os.fspath(path)} has a header that cannot be read: {error!r}") from error
    if found > version:
        raise TransferFileError(
            f"{os.fspath(path)} is of version {found}, this Vitrail reads up to {version}; update Vitrail"
        )
    return values, tensors
