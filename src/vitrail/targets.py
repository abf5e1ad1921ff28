"""What is asked of each image: classes by name or index, what they are held against, or functions of the output."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import ObjectiveError, SameClassError, TargetCountError, TargetError, UnknownClassError, VitrailError
from .outputs import LOGITS, Output

__all__ = [
    "HasClasses",
    "TargetFunction",
    "Targets",
    "Wanted",
    "as_lists",
    "ask_function",
    "function_name",
    "pair_up",
    "parse_targets",
    "predicted",
    "refuse_same",
    "refuse_unpredicted",
    "repeatable",
]

TargetFunction: TypeAlias = Callable[[Tensor], Tensor]
Wanted: TypeAlias = str | int | np.integer | Tensor | np.ndarray | TargetFunction | Iterable[Any] | None

FUNCTION = -1  # stands in `Targets.index` where a function of the output is asked about, and no class
MOST = 100_000  # items that are read from a generator


@runtime_checkable
class HasClasses(Protocol):
    """Whatever knows its classes by name: a model of pictures, of text, of both."""

    def class_index(self, name_or_index: Any, count: int | None = None) -> int:
        """Returns the index of a class given by name or by index; raises the errors of `vitrail.models.class_names`."""
        ...

    def class_name(self, index: int) -> str:
        """Returns the name of that class."""
        ...


@dataclass(frozen=True, eq=False)
class Targets:
    """Class indices for each image; `nested` says that several per image were asked for, so results keep that axis.

    Where a function of one image's output is asked about instead, the index is −1 and `functions` holds it.
    """

    index: Int[Tensor, "images targets"]
    nested: bool
    functions: tuple[tuple[TargetFunction | None, ...], ...] | None = None

    def __getitem__(self, images: slice) -> "Targets":
        return replace(self, index=self.index[images], functions=self.functions and self.functions[images])

    def rows(self, images: Int[Tensor, " rows"] | Sequence[int]) -> "Targets":
        """Returns the targets of these images, one row for each."""
        numbers = [int(number) for number in images]
        functions = None if self.functions is None else tuple(self.functions[number] for number in numbers)
        return replace(self, index=self.index[numbers], functions=functions)

    def function(self, image: int, target: int) -> TargetFunction | None:
        """Returns the function that is asked about in place of a class, if any."""
        return None if self.functions is None else self.functions[image][target]


def parse_targets(
    model: HasClasses,
    wanted: Any,
    images: int,
    classes: int | None = None,
    name: str = "target",
    *,
    functions: bool = False,
) -> Targets | None:
    """Reads a target as users give it: one for all images, a list (one per image), a nested list (several per image).

    Lists may be of any kind: tuples, arrays, tensors, pandas' Series, generators. A tensor or array (images, classes)
    of zeros with a single one in each row is one-hot. Where `functions` are allowed, a callable (or a list with
    callables in it) takes one image's output and returns a scalar, as the targets of pytorch-grad-cam do; one that
    picks a single class is that class. `classes` is the number of logits, where known. Returns None for None: the
    predicted class, known only after the forward pass.

    Raises:
        TargetCountError: when the numbers of targets and images disagree.
        UnknownClassError, AmbiguousClassError: from the model's class names.
        TargetError: for something that is no class.

    Example:
        >>> import vitrail
        >>> model = vitrail.wrap(torch.nn.Identity(), class_names=("horse", "zebra"))
        >>> parse_targets(model, "zebra", images=2).index.tolist()
        [[1], [1]]
        >>> parse_targets(model, [["zebra", "horse"]], images=1).index.tolist()
        [[1, 0]]
    """
    if wanted is None:
        return None
    asked = as_lists(wanted, name, classes)
    if not isinstance(asked, list):
        asked, nested = [[asked]] * images, False
    else:
        if len(asked) != images:
            remedy = f"; for several targets of one image nest them: {name}=[[…]]" if images == 1 else ""
            raise TargetCountError(f"{name} lists {len(asked)} for {images} image(s): give one per image{remedy}")
        lists = [isinstance(item, list) for item in asked]
        nested = any(lists)
        if nested and not all(lists):
            raise TargetCountError(f"{name} mixes single classes with lists: give a list for every image, or for none")
        asked = asked if nested else [[item] for item in asked]
    counts = sorted({len(item) for item in asked})
    if len(counts) > 1 or counts[:1] == [0]:
        raise TargetCountError(
            f"{name} lists {' and '.join(map(str, counts))} targets for different images: give each as many"
            if counts != [0]
            else f"{name} lists 0 targets for each image: give at least one, or {name}=None for the predicted class"
        )
    found: dict[int, int | TargetFunction] = {}  # each object is looked up once

    def settled(one: Any) -> int | TargetFunction:
        if id(one) not in found:
            found[id(one)] = _settled(model, one, classes, name, functions)
        return found[id(one)]

    rows = [[settled(one) for one in item] for item in asked]
    binary = all(type(one) is int and one in (0, 1) for item in asked for one in item)
    if nested and binary and classes == counts[0] > 2:
        raise TargetError(
            f"{name} lists {classes} zeros and ones for an image, as many as there are classes: one-hot rows are read "
            f"from a tensor or array (images, classes) of whole numbers; give that, or the indices"
        )
    index = torch.tensor([[FUNCTION if callable(one) else one for one in row] for row in rows])
    kept = tuple(tuple(one if callable(one) else None for one in row) for row in rows)
    return Targets(index, nested, kept if bool((index == FUNCTION).any()) else None)


def pair_up(target: Targets | None, against: Targets | None) -> tuple[Targets | None, Targets | None]:
    """Gives every target a class it is held against: one for all of an image's targets, or as many as there are
    targets.

    Raises:
        TargetCountError: when the two lists differ in length.
        ObjectiveError: when the target is a function, which compares classes itself.
    """
    if against is None:
        return target, None
    if target is not None and target.functions is not None:
        raise ObjectiveError("against= means nothing to a target that is a function: compare the classes in it")
    targets = 1 if target is None else target.index.shape[1]
    others = against.index.shape[1]
    if targets == others:
        nested = against.nested or (target is not None and target.nested)
        return (target and Targets(target.index, nested)), Targets(against.index, nested)
    if others == 1 and target is not None:
        return target, Targets(against.index.expand(-1, targets), target.nested)
    if targets == 1 and target is not None:
        return Targets(target.index.expand(-1, others), True), against
    raise TargetCountError(
        f"{targets} target(s) per image are held against {others}: give one class against, or as many"
    )


def refuse_same(model: HasClasses, target: Targets | None, against: Targets | None, *, chosen: bool = False) -> None:
    """Refuses a class that is held against itself; `chosen` says that the targets are the model's predictions.

    Raises:
        SameClassError: naming the class, and the first image for which it is so.
    """
    if target is None or against is None:
        return
    same = (target.index == against.index).nonzero()
    if len(same):
        image, column = same[0].tolist()
        index = int(target.index[image, column])
        why = " (the predicted class)" if chosen else ""
        which = f", image {image}," if len(target.index) > 1 else ""
        rest = "is held against itself: give two different classes"
        error = SameClassError(f"{model.class_name(index)} ({index}){why}{which} {rest}")
        error.images, error.cause = tuple(same[:, 0].unique().tolist()), f"the class{why} {rest}"
        raise error


def predicted(logits: Float[Tensor, "images classes"], output: Output = LOGITS) -> Targets:
    """Returns the class with the largest logit.

    Raises:
        TargetError: as `refuse_unpredicted`.
    """
    refuse_unpredicted(output, logits.shape[1])
    return Targets(logits.argmax(dim=1, keepdim=True), nested=False)


def refuse_unpredicted(output: Output, classes: int) -> None:
    """Refuses to name a predicted class among several free numbers, of which the largest is not the model's answer.

    Raises:
        TargetError: for scores and embeddings of more than one number.
    """
    if output.link is None and classes > 1:
        raise TargetError(
            f"the model gives {classes} numbers of the kind {output.kind}, none of which is a predicted class: say "
            f"which one is meant, target=, from 0 to {classes - 1}"
        )


def function_name(function: TargetFunction) -> str:
    """Returns a target function's name for captions: its own, or its class with its arguments.

    Example:
        >>> function_name(torch.amax), function_name(lambda output: output[3])
        ('amax', 'a function of the output')
    """
    name = getattr(function, "__name__", None)
    if name is not None:
        return "a function of the output" if name == "<lambda>" else str(name)
    told = {key: value for key, value in getattr(function, "__dict__", {}).items() if not key.startswith("_")}
    plain = [f"{key}={value}" for key, value in told.items() if isinstance(value, str | int | float)]
    return f"{type(function).__name__}({', '.join(plain)})"


def ask_function(function: TargetFunction, numbers: Float[Tensor, " classes"]) -> Float[Tensor, ""]:
    """Returns the scalar that a function makes of one image's output.

    Raises:
        ObjectiveError: when it fails, or returns anything but one number.
    """
    try:
        value = function(numbers)
    except VitrailError:
        raise
    except Exception as error:  # whatever the user's own function raises
        raise ObjectiveError(
            f"target={function_name(function)} failed on an output of {len(numbers)} numbers: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ObjectiveError(
            f"target={function_name(function)} returned {got}: it takes one image's output, a tensor of "
            f"{len(numbers)} numbers, and returns one of them, or one number made of them"
        )
    return value.reshape(())


def repeatable(wanted: Any, name: str = "target") -> Any:
    """Returns a generator's items as a list, for a target is read more than once; everything else as it is.

    Raises:
        TargetError: when the generator fails.
    """
    return _listed(wanted, name) if isinstance(wanted, Iterator) else wanted


def _listed(wanted: Iterable[Any], name: str) -> list[Any]:
    try:
        return list(islice(wanted, MOST))
    except VitrailError:
        raise
    except Exception as error:  # of a generator of the user's
        raise TargetError(f"{name} cannot be read as a list: {type(error).__name__}: {error}") from error


def _settled(model: HasClasses, wanted: Any, classes: int | None, name: str, functions: bool) -> int | TargetFunction:
    """Returns the index of a class, or the function of the output where it picks no single class."""
    if _is_function(wanted):
        if not functions or classes is None:
            raise TargetError(
                f"{name}={function_name(wanted)} is a function, which cannot be asked about here: give a class by name "
                "or index; vitrail.explain takes functions as target=, without against= and guide="
            )
        picked = _picked(wanted, classes)
        return wanted if picked is None else picked
    wanted = wanted.value if isinstance(wanted, Enum) else wanted
    number = _integer(wanted)
    if number is None and not isinstance(wanted, str):
        raise TargetError(f"{name}={_short(wanted)} ({type(wanted).__name__}) is no class: give a name or an index")
    index = model.class_index(wanted if number is None else number, classes)
    if index >= 2**63:
        raise UnknownClassError(f"there is no class {index}")
    return index


def _is_function(wanted: Any) -> TypeGuard[TargetFunction]:
    return callable(wanted) and not isinstance(wanted, type)


def _integer(wanted: Any) -> int | None:
    if isinstance(wanted, bool | str) or not hasattr(type(wanted), "__index__"):
        return None
    try:
        return wanted.__index__()
    except Exception:  # arrays and tensors have the method, and refuse it
        return None


def _picked(function: TargetFunction, classes: int) -> int | None:
    """Returns the class that a function picks, where it does nothing else: its value and its gradient say so at six
    outputs.

    The outputs are small, common and large, and their negatives, so that neither a largest class nor one that is
    clamped is taken for a fixed one.
    """
    probes = torch.randn(3, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes *= torch.tensor([[1e-3], [1.0], [1e4]])
    found = set()
    for probe in (*probes, *-probes):
        leaf = probe.clone().requires_grad_()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                value = ask_function(function, leaf)
                (slope,) = torch.autograd.grad(value, leaf)
        except Exception:  # what it makes of the real output will tell
            return None
        at = slope.nonzero()[:, 0].tolist()
        if len(at) != 1 or slope[at[0]] != 1 or value.item() != probe[at[0]]:
            return None
        found.add(at[0])
    return found.pop() if len(found) == 1 and classes > 1 else None


def as_lists(wanted: Any, name: str, classes: int | None, depth: int = 0) -> Any:
    """Turns lists of any kind into lists, at most two deep; returns anything else unchanged."""
    if isinstance(wanted, str | bytes | bytearray) or (callable(wanted) and not hasattr(wanted, "tolist")):
        return wanted
    if isinstance(wanted, Mapping | Set):
        raise TargetError(f"{name} is a {type(wanted).__name__}, which has no order: give a list, one class per image")
    if not hasattr(wanted, "tolist") and (rows := getattr(wanted, "to_numpy", None)) is not None:
        wanted = rows()  # of a table, which would list its columns
    if hasattr(wanted, "tolist"):  # tensors, arrays and their scalars, Series
        wanted = _array(wanted, name, classes, depth)
    elif not isinstance(wanted, Iterable):
        return wanted
    else:
        wanted = _listed(wanted, name)
    if not isinstance(wanted, list):
        return wanted
    if depth == 2:
        raise TargetError(f"{name} is nested more than twice: give a list of one class per image, or a list of lists")
    return [as_lists(item, name, classes, depth + 1) for item in wanted]


def _array(wanted: Any, name: str, classes: int | None, depth: int) -> Any:
    """Returns an array as a list of whole numbers; one-hot rows as the index of their one."""
    floats = isinstance(wanted, Tensor) and (wanted.is_floating_point() or wanted.is_complex())
    try:
        array = np.asarray(0.0 if floats else wanted.cpu() if isinstance(wanted, Tensor) else wanted)
        kind, listed = array.dtype.kind, array.tolist()
    except Exception as error:  # of anything with a tolist
        raise TargetError(f"{name} ({type(wanted).__name__}) cannot be read: {error}") from error
    if kind in "fc":
        raise TargetError(
            f"{name} holds {getattr(wanted, 'dtype', type(wanted).__name__)} numbers, and classes are whole numbers: "
            f"give indices (for instance {name}.long() of a tensor, .astype(int) of an array)"
        )
    rows = depth == 0 and array.ndim == 2 and array.shape[1] == classes != 1 and kind in "iub"
    if not rows or not array.size or (kind != "b" and not np.isin(array, (0, 1)).all()):
        if kind == "b":
            raise TargetError(f"{name} holds truth values, which are no classes: give indices")
        return listed
    if not (array.sum(axis=1) == 1).all():
        raise TargetError(
            f"{name} of shape {array.shape} has rows of zeros and ones with other than a single one: one-hot rows have "
            f"one; for several classes of an image give their indices, {name}=[[…], …]"
        )
    if kind != "b" and classes == 2:
        raise TargetError(
            f"{name} of shape {array.shape} could be one-hot rows or two classes for each image: give "
            f"{name}.argmax(1) for the first, {name}.tolist() for the second"
        )
    return array.argmax(axis=1).tolist()


def _short(wanted: Any) -> str:
    try:
        said = repr(wanted)
    except Exception:  # of the user's own type
        said = type(wanted).__name__
    return said if len(said) <= 60 else f"{said[:57]}…"
