"""The manifest of a run: all that decides its numbers, with a digest of the model's weights."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from ..datasets import Dataset
from ..errors import ModelError
from ..models.vision_model import VisionModel
from .block_worker import BlockPlan, fitted
from .parquet_rows import FORMAT

__all__ = ["digest_of", "manifest_of"]


def manifest_of(
    model: VisionModel,
    data: Dataset,
    plan: BlockPlan,
    *,
    methods: Sequence[str] = (),
    protocols: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Returns all that decides a run's numbers, as plain JSON values; runs that differ in the date alone are
    the same run.
    """
    return {
        "format": FORMAT,
        "data": data.describe(),
        "images": len(data),
        "model": {
            "name": model.name,
            **model.metadata,
            "output": model.kind_for(torch.zeros(1, 3, *fitted(model, plan).size)).kind,
            "class_names": None if model.class_names is None else list(model.class_names),
            "weights": digest_of(model.module),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        },
        "preprocess": model.preprocess.record() if model.preprocess is not None else None,
        "plan": plan.describe(),
        "methods": list(methods),
        "protocols": dict(protocols or {}),
        **more,
        "seed": plan.seed,
        "block": plan.block,
        "batch": plan.batch,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in ("vitrail", "torch", "timm", "numpy", "pillow")},
    }


def digest_of(module: nn.Module) -> str:
    """Returns the SHA-256 of all parameters and buffers with their names, in hexadecimal.

    Raises:
        ModelError: for weights without numbers, and for a state that is no tensor and has no fixed bytes.
    """
    found = hashlib.sha256()
    name = ""
    try:
        for name, held in sorted(module.state_dict().items()):
            found.update(f"{name} ".encode())
            _add(found, held)
    except Exception as error:  # of tensors of other libraries, which need not answer as PyTorch's do
        said = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(
            f"the weights cannot be told from others, so no run could be resumed: {name or 'state_dict()'} of "
            f"{type(module).__name__} raised {type(error).__name__}: {said}; give the model with plain tensors, loaded "
            "on a device"
        ) from error
    return found.hexdigest()


def _add(found: "hashlib._Hash", held: Any) -> None:
    """Adds what a state holds under one name: a tensor of any layout, or the plain values of quantized layers."""
    match held:
        case torch.Tensor() if held.is_meta:
            raise ValueError("on the meta device it holds no numbers")
        case torch.Tensor():
            found.update(f"{tuple(held.shape) if not held.is_nested else 'nested'} {held.dtype}".encode())
            if _plain(held):
                data: Any = held.detach().resolve_conj().resolve_neg().cpu().contiguous()
                found.update(data.view(-1).view(torch.uint8).numpy())
            else:
                _add(found, _parts(held.detach()))
        case Mapping():
            for name, value in held.items():
                found.update(f"{name} ".encode())
                _add(found, value)
        case list() | tuple():
            for value in held:
                _add(found, value)
        case None | bool() | int() | float() | str() | bytes() | torch.dtype():
            found.update(repr(held).encode())
        case _:
            raise TypeError(f"a state of type {type(held).__name__} has no fixed bytes")


def _plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested)
    )


def _parts(tensor: Any) -> list[Any]:
    """Returns the tensors and values that a tensor consists of which is not a plain one."""
    if hasattr(tensor, "full_tensor"):  # distributed
        if tensor.device_mesh.size() > 1:
            raise ValueError("it is shared among several processes")
        return [tensor.full_tensor()]
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout is not torch.strided:
        return [tensor.to_dense()]
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return [tensor.int_repr(), tensor.q_scale(), tensor.q_zero_point()]
        return [tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
    if hasattr(tensor, "__tensor_flatten__"):  # of torchao and others, made of tensors by name
        names, rest = tensor.__tensor_flatten__()
        return [*(getattr(tensor, name) for name in names), re.sub(r" at 0x[0-9a-f]+", "", repr(rest))]
    return [tensor.as_subclass(torch.Tensor)]
