"""What every protocol is made of: its case, its queries, what it returns, its entry in the registry, and its options.

A protocol is a generator: it yields queries and is sent the answers, so that whoever runs it may put the queries of
many images, methods and protocols into the same forward passes of the model.

    logits = yield LogitQuery(9, lambda rows: perturbed(rows))   # "rows classes"
    logits = yield TokenSubsetQuery(case.image, kept)            # "rows classes"
    scores = yield AttributionQuery(images, targets=[3])         # "images rows cols"
    return [Measured("hit", 0.1, 1.0), …]
"""

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import OptionError, UnknownProtocolError
from ..outputs import LOGITS, Output
from ..targets import refuse_unpredicted
from .aggregation import Statistic

__all__ = [
    "ORDERS",
    "PROTOCOLS",
    "SCORES",
    "TARGETS",
    "AttributionQuery",
    "Case",
    "Evaluation",
    "LogitQuery",
    "Measured",
    "Parts",
    "ProtocolInfo",
    "Query",
    "TokenSubsetQuery",
    "answers",
    "check_count",
    "check_map",
    "check_one_of",
    "check_shares",
    "class_asked",
    "find_protocol",
    "list_protocols",
    "register_protocol",
]


Mask = TypeVar("Mask")
Picture = TypeVar("Picture")


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts(Generic[Mask, Picture]):
    """The parts of the object in a drawn scene, the things around it, and the scene drawn again without some of them.

    `masks` holds the pixels of each part that is seen, `things` those that each other thing changes; `draw` gives the
    picture without the parts and things of these names. `shared` are the parts that other classes would have in just
    this form, by class; `sufficient` the smallest sets of parts that tell the label's class from all others.
    """

    masks: Mapping[str, Mask]
    things: Mapping[str, Mask]
    draw: Callable[[frozenset[str]], Picture]
    shared: Mapping[int, frozenset[str]]
    sufficient: tuple[frozenset[str], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """An image, the class that is explained, and what is known to be true of it.

    `image` is the model's own input, normalised; `logits` are what the model answers to it; `target` is the class that
    the maps are of, `label` the true one. `boxes` (the labelled object's boxes together), `mask` (the object's
    silhouette) and `regions` (one region for each class that the picture is known to hold) lie on the pixels of
    `image`, and so does what `parts()` holds, whose pictures are normalised. What is not known is None, or empty.
    `grid` holds the rows and columns of the model's patches, `prefix` the number of tokens before them; `black` and
    `white` are the normalised values of black and white in each channel; `output` is the kind of the model's output,
    which says what `logits` are.
    `seed` is the image's own, from the run's seed and its place in the data.
    """

    index: int
    source: str
    image: Float[Tensor, "channels height width"]
    logits: Float[Tensor, " classes"]
    target: int
    grid: tuple[int, int]
    prefix: int
    black: tuple[float, ...]
    white: tuple[float, ...] | None = None
    seed: int = 0
    label: int | None = None
    boxes: Bool[Tensor, "height width"] | None = None
    mask: Bool[Tensor, "height width"] | None = None
    regions: Mapping[int, Bool[Tensor, "height width"]] = field(default_factory=dict)
    parts: Callable[[], Parts[Tensor, Tensor]] | None = None
    output: Output = LOGITS

    @property
    def size(self) -> tuple[int, int]:
        """Returns height and width of `image` in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    @property
    def predicted(self) -> int:
        """Returns the class with the highest logit."""
        return int(self.logits.argmax())

    def generator(self) -> torch.Generator:
        """Returns a generator on the CPU that gives the same numbers for this image in every run of the same seed."""
        return torch.Generator().manual_seed(self.seed)

    def has_annotation(self, what: str) -> bool:
        """Returns whether there is a `what`: "label", "boxes", "mask", "regions" or "parts"."""
        found = getattr(self, what)
        return found is not None and (what != "regions" or bool(found))


@dataclass(frozen=True, eq=False)
class LogitQuery:
    """What does the model say to `count` images? `make(rows)` makes those of a range of rows when their turn comes."""

    count: int
    make: Callable[[range], Float[Tensor, "rows channels height width"]]


@dataclass(frozen=True, eq=False)
class TokenSubsetQuery:
    """What does it say to an image of which only some tokens go through its blocks? One row for each selection.

    `patches` holds the patches that stay, ascending, counted from the first patch: as many in each row.
    """

    image: Float[Tensor, "channels height width"]
    patches: Int[Tensor, "rows kept"]


@dataclass(frozen=True, eq=False)
class AttributionQuery:
    """What map does the method that is being measured give for other images, or for other classes? One class each.

    `randomised` is the number of the model's last layers whose parameters are drawn anew first (0: none). `apart` is
    the group of each patch, row by row: groups do not attend to each other, and the head reads group 0 (empty: the
    model as it is).
    """

    images: Float[Tensor, "images channels height width"]
    targets: Sequence[int]
    randomised: int = 0
    apart: tuple[int, ...] = ()


class Measured(NamedTuple):
    """One number: what was measured, at which step of a curve (None: a single number), and the value."""

    measure: str
    step: float | None
    value: float


Query: TypeAlias = LogitQuery | TokenSubsetQuery | AttributionQuery
Evaluation: TypeAlias = Generator[Query, Tensor, list[Measured]]


Summary = Callable[..., Mapping[str, Statistic]]


@dataclass(frozen=True)
class ProtocolInfo:
    """What is known of a protocol without running it.

    `function` takes a case, a raw map and the options, and is an `Evaluation`. `summarise` takes the `Curves` of all
    images and the same options, and gives the numbers by which methods are compared. `needs` names what must be known
    of an image ("label", "boxes", "mask", "regions", "parts"); `signed` whether scores below zero mean something to it.
    """

    name: str
    function: Callable[..., Evaluation] = field(repr=False)
    summarise: Summary = field(repr=False)
    needs: tuple[str, ...]
    reference: str
    summary: str
    signed: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Returns the protocol's own keyword options and their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in parameters}


PROTOCOLS: dict[str, ProtocolInfo] = {}


def register_protocol(
    name: str, *, summarise: Summary, reference: str, needs: tuple[str, ...] = (), signed: bool = False
) -> Callable[[Callable[..., Evaluation]], Callable[..., Evaluation]]:
    """Enters a protocol under its name; the first sentence of its docstring says what it measures.

    Raises:
        OptionError: for a name that is taken.
    """

    def enter(function: Callable[..., Evaluation]) -> Callable[..., Evaluation]:
        if name in PROTOCOLS:
            raise OptionError(f"a protocol named {name!r} is registered already")
        text = inspect.getdoc(function) or ""
        summary = " ".join(text.split("\n\n")[0].split())
        PROTOCOLS[name] = ProtocolInfo(name, function, summarise, needs, reference, summary, signed)
        return function

    return enter


def find_protocol(name: str, options: Mapping[str, Any] | None = None) -> ProtocolInfo:
    """Returns the protocol of that name, which must know the options.

    Raises:
        UnknownProtocolError: for a name that is not registered.
        OptionError: for an option that the protocol does not have.
    """
    info = PROTOCOLS.get(name)
    if info is None:
        raise UnknownProtocolError(f"no protocol is called {name!r}; there are {', '.join(PROTOCOLS)}")
    for option in options or {}:
        if option not in info.options:
            raise OptionError(f"{name} has no option {option!r}; its own: {', '.join(info.options) or 'none'}")
    return info


def list_protocols() -> list[ProtocolInfo]:
    """Returns all protocols in the order in which they were registered."""
    return list(PROTOCOLS.values())


def check_map(scores: Float[Tensor, "*batch rows cols"], size: tuple[int, int]) -> None:
    """Refuses a map that does not divide an image of (height, width). Raises `OptionError`, naming both sizes."""
    (height, width), (rows, cols) = size, scores.shape[-2:]
    if height % rows or width % cols:
        raise OptionError(f"a map of {rows}×{cols} places does not divide an image of {height}×{width} pixels")


TARGETS = ("explained", "predicted", "label")
SCORES = ("probability", "hit", "output")
ORDERS = ("morf", "lerf")  # the most relevant first, or the least


def check_one_of(option: str, value: str, known: Sequence[str]) -> None:
    """Refuses a word that is not among those known. Raises `OptionError`."""
    if value not in known:
        raise OptionError(f"{option}={value!r} is unknown; choose one of {', '.join(known)}")


def check_count(option: str, value: int, least: int = 1) -> None:
    """Refuses a whole number below the least that makes sense. Raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{option}={value!r} must be a whole number, {least} or more")


def check_shares(shares: Sequence[float]) -> None:
    """Refuses shares of an image that are not ascending, each above 0 and below 1. Raises `OptionError`."""
    told = f"shares={tuple(shares)}"
    if not shares:
        raise OptionError(f"{told} takes nothing out; give at least one share of the image")
    if not all(0 < share < 1 for share in shares):
        raise OptionError(f"{told} must each lie above 0 and below 1")
    if any(one >= two for one, two in pairwise(shares)):
        raise OptionError(f"{told} must ascend, each but once")


def class_asked(case: Case, target: str) -> int:
    """Returns the class whose answer is watched: the one explained, the predicted or the true one.

    Raises:
        OptionError: for another word, or the label of an image that has none.
        TargetError: for the predicted one of several free numbers.
    """
    check_one_of("target", target, TARGETS)
    if target == "label":
        if case.label is None:
            raise OptionError(f"target='label' needs the true class of {case.source}, which is not known")
        return case.label
    if target == "predicted":
        refuse_unpredicted(case.output, len(case.logits))
    return case.target if target == "explained" else case.predicted


def answers(case: Case, logits: Float[Tensor, "rows classes"], asked: int, score: str) -> Float[Tensor, " rows"]:
    """Returns a class's score in float64: its probability, 1 where it is predicted, or the model's number ("output").

    Raises:
        OptionError: for another word.
        OutputKindError: for a probability or a winner of what has none.
    """
    check_one_of("score", score, SCORES)
    if score == "output":
        return case.output.numbers(logits.double())[:, asked]
    if score == "hit":
        return case.output.wins(logits, asked).double()
    return case.output.probabilities(logits.double())[:, asked]
