"""Reading weights from a file that may come from anywhere, and putting them into a module whole or not at all."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, CheckpointMismatchError, UnsafeCheckpointError
from ..silence import silenced

__all__ = ["fill", "fingerprint", "mismatch", "name_some", "read_checkpoint"]

# Where training scripts put the weights, in timm's order: averaged weights before the last ones.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "model_state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 4  # names per kind of mismatch in a message


def read_checkpoint(path: str | PathLike) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, on the CPU; nothing in the file is ever executed.

    `.safetensors` files are read as such, all others as PyTorch files with `weights_only=True`. The usual wrappers
    ("state_dict", "model" …) and the prefixes that data parallel training and `torch.compile` leave are taken off.

    Raises:
        UnsafeCheckpointError: for a pickle that holds more than tensors and plain containers.
        CheckpointError: for a file that is missing, cut short, or no checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the file that holds the weights")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} could not be opened: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    # A safetensors file begins with the length of its header, 8 bytes, and the header's opening brace.
    if path.suffix.lower() == ".safetensors" or (head[8:] == b"{" and not head.startswith(b"PK")):
        return _clean(_read_safetensors(path), path)
    return _clean(_read_torch(path, head), path)


def fingerprint(path: str | PathLike) -> str:
    """The SHA-256 of the file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    label: str,
    *,
    repairs: Sequence[Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]] = (),
) -> None:
    """Load the tensors into the module, all of them and nothing left over, or leave it as it was.

    `repairs` translate the tensors to the module's names and shapes (other resolutions, other libraries' names); the
    first whose result fits is used, and the tensors as they are when none does. `label` names the file in messages.

    Raises:
        CheckpointMismatchError: with the counts and the first names of what is missing, unexpected or of another shape.
    """
    for repair in repairs:
        try:
            repaired = dict(repair(dict(tensors)))
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            continue  # made for other checkpoints than this one
        if not _disagreements(module, repaired):
            module.load_state_dict(repaired)
            return
    if reason := _disagreements(module, tensors):
        raise mismatch(label, reason, _head_remedy(module, tensors))
    module.load_state_dict(dict(tensors))


def mismatch(label: str, reason: str, remedy: str = "") -> CheckpointMismatchError:
    """The error for weights that do not fit, in one wording for all sources."""
    remedy = remedy or "was it made for another model, size or number of classes?"
    return CheckpointMismatchError(f"{label} does not fit the model: {reason}; {remedy}")


def name_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _disagreements(module: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)} in the file and {tuple(tensor.shape)} in the model"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} tensors are missing ({name_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are unexpected ({name_some(unexpected)})")
    if misshapen:
        parts.append(f"{len(misshapen)} have another shape ({name_some(misshapen)})")
    return ", ".join(parts)


def _head_remedy(module: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """The remedy where nothing but the number of classes differs, and "" otherwise."""
    wanted = module.state_dict()
    if wanted.keys() != tensors.keys():
        return ""
    differing = [name for name in wanted if wanted[name].shape != tensors[name].shape]
    counts = {tensors[name].shape[0] for name in differing if tensors[name].ndim}
    heads = all("head" in name and wanted[name].shape[1:] == tensors[name].shape[1:] for name in differing)
    if not heads or len(counts) != 1:
        return ""
    count = counts.pop()
    return f"the file was made for {count} classes, so load the model with num_classes={count}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = f"{path} is no whole safetensors file ({error}); was it cut short while copying?"
        raise CheckpointError(reason) from error


def _read_torch(path: Path, head: bytes) -> Any:
    try:
        # Said of any pickle that torch did not write; whether it can be read is told by what follows.
        with silenced(UserWarning, message="Detected pickle protocol"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error)
        # Both are torch's words: a name that is not allowed inside a pickle, and a TorchScript archive, which is code.
        if "unsupported" in text.lower() or "TorchScript" in text:
            raise UnsafeCheckpointError(
                f"{path} is a pickle that could run code when opened, so it was not ({_forbidden(text)}); "
                "ask for the weights alone, saved by safetensors.torch.save_file(model.state_dict(), …)"
            ) from error
        if head.startswith((b"PK", b"\x80")):
            reason = f"{path} cannot be read as a PyTorch file; was it cut short while copying?"
            raise CheckpointError(reason) from error
        raise CheckpointError(
            f"{path} is no checkpoint: neither a safetensors nor a PyTorch file (it begins with {head!r})"
        ) from error


def _forbidden(text: str) -> str:
    """What torch's message says is not allowed."""
    if "TorchScript" in text:
        return "it is a TorchScript archive"
    lines = [line.strip() for line in text.splitlines() if "unsupported" in line.lower()]
    if "operand" in lines[0]:  # the number of an instruction, which says nothing to anybody
        return "it does more than hold tensors"
    return lines[0].rpartition("Error: ")[2].partition(" was not an allowed")[0]


def _clean(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The flat dict of tensors inside the containers that training scripts save."""
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    held = list(loaded.items()) if isinstance(loaded, Mapping) else []
    tensors = {str(name): value for name, value in held if isinstance(value, Tensor)}
    if not tensors:
        what = (
            f"a dict with {name_some([str(name) for name, _ in held]) or 'nothing'}" if held else type(loaded).__name__
        )
        raise CheckpointError(f"{path} holds {what}, and no tensors by name; save model.state_dict()")
    for prefix in _PREFIXES * 2:  # either may be outside the other
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
