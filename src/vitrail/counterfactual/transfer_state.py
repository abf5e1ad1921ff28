"""An interrupted descent on disk: enough to go on to the same numbers, and to notice when the question has changed."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .descent import Course
from .tensor_file import TransferFileError, read_tensors, write_tensors

__all__ = ["Belonging", "fingerprint", "read_course", "write_course"]

KIND, VERSION = "vitrail transfer state", 1


@dataclass(frozen=True, eq=False)
class Belonging:
    """What a course belongs to: the values of the question, and the logits of the untouched model for the image."""

    values: Mapping[str, Any]
    snapshots: tuple[int, ...]
    logits: Float[Tensor, " classes"]


def fingerprint(image: Float[Tensor, "1 channels height width"]) -> str:
    """The SHA-256 of an image as the model takes it."""
    pixels = image.detach().cpu().to(torch.float64).contiguous().numpy()
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def write_course(path: str | os.PathLike[str], course: Course, belonging: Belonging) -> None:
    """Write a course down, whole or not at all.

    Raises:
        OutputFileError: when the file cannot be written.
    """
    tensors = {f"parameters.{layer}": tensor for layer, tensor in enumerate(course.parameters)}
    for name, moment in course.moments.items():
        tensors |= {f"moments.{name}.{layer}": tensor for layer, tensor in enumerate(moment)}
    tensors |= {f"logits.{number}": logits for number, logits in enumerate(course.logits)}
    tensors |= {f"maps.{number}": maps for number, maps in enumerate(course.maps)}
    values = {
        "taken": course.taken,
        "snapshots": _passed(belonging, course.taken),
        "moments": list(course.moments),
        "layers": len(course.parameters),
        "asked": dict(belonging.values),
    }
    write_tensors(path, KIND, VERSION, values, {**tensors, "plain": belonging.logits})


def read_course(path: str | os.PathLike[str], belonging: Belonging, steps: int, like: Tensor) -> Course:
    """Read a course that belongs to this question; its parameters get the type and device of `like`.

    Raises:
        TransferFileError: when the file is damaged, or holds a course of another question, image or model.
    """
    values, tensors = read_tensors(path, KIND, VERSION)
    other = "name another state=, or delete it to begin anew"
    try:
        taken, layers = int(values["taken"]), range(int(values["layers"]))
        for name, wanted in belonging.values.items():
            if values["asked"][name] != wanted:
                raise TransferFileError(
                    f"{os.fspath(path)} is of a run with {name}={values['asked'][name]}, this one has {name}={wanted}: "
                    f"{other}"
                )
        if taken > steps:
            raise TransferFileError(f"{os.fspath(path)} has taken {taken} steps, more than steps={steps}: {other}")
        if values["snapshots"] != _passed(belonging, taken):
            raise TransferFileError(
                f"{os.fspath(path)} has maps of steps {values['snapshots']}, but of its {taken} steps "
                f"{_passed(belonging, taken)} are asked for: {other}"
            )
        if not torch.allclose(tensors["plain"].double(), belonging.logits.double(), rtol=1e-3, atol=1e-3):
            raise TransferFileError(f"{os.fspath(path)} is of a model that answers this image otherwise: {other}")
        return Course(
            parameters=tuple(tensors[f"parameters.{layer}"].to(like) for layer in layers),
            moments={
                name: tuple(tensors[f"moments.{name}.{layer}"].to(like) for layer in layers)
                for name in values["moments"]
            },
            taken=taken,
            logits=tuple(tensors[f"logits.{number}"] for number in range(taken)),
            maps=tuple(tensors[f"maps.{number}"] for number in range(len(values["snapshots"]))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TransferFileError(f"{os.fspath(path)} is no state that Vitrail can read: {error!r}") from error


def _passed(belonging: Belonging, taken: int) -> list[int]:
    return [step for step in belonging.snapshots if step < taken]
