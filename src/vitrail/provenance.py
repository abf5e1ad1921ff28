"""Where a map came from: what was asked of which model, about which images, and what was found out on the way.

The layers pass the record on; files and users have it as plain JSON values (`Provenance.as_metadata`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args

from .outputs import Kind, Link, Output

__all__ = ["Box", "GuideFacts", "Provenance", "Stitch", "failure_notes", "from_metadata"]


@dataclass(frozen=True)
class Box:
    """A rectangle of whole patches: its first row and column, and how many of each."""

    top: int
    left: int
    rows: int
    cols: int

    def slices(self, patch: tuple[int, int] = (1, 1)) -> tuple[slice, slice]:
        """Returns rows and columns of the box, in patches or, for a patch of (height, width), in pixels."""
        (high, wide) = patch
        rows = slice(self.top * high, (self.top + self.rows) * high)
        return rows, slice(self.left * wide, (self.left + self.cols) * wide)


@dataclass(frozen=True)
class Stitch:
    """Where original and guide lie in one input, in patches of `patch` = (height, width) pixels.

    `original` and `guide` are the two halves; `shown` is the part of the original's half that shows the picture, which
    is smaller than the half where it is padded. `input` says how the model takes an input of this size.
    """

    layout: str
    side: str
    fit: str
    grid: tuple[int, int]
    original: Box
    guide: Box
    shown: Box
    patch: tuple[int, int]
    input: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Returns height and width of the stitched input in pixels."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]


@dataclass(frozen=True)
class GuideFacts:
    """One guide: the file it came from, or that the model drew it, and the class that the model sees in it."""

    source: str | None
    drawn: bool
    index: int
    class_name: str
    logit: float
    probability: float


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that a result tells of itself beyond its numbers; None and () stand for what is not known.

    `origin` says where the weights came from; of a file it also holds entries that this Vitrail does not know.
    `sources`, `image_notes`, `difference_instead` (by target: whether the difference stood in for a quotient),
    `functions` (by target: name and value of a function that was asked about), `positions` (in the call, where some
    images failed), `guides` and `beside` have one entry for each image: `guides` all guides of a mean of maps, `beside`
    the one in a stitched map, whose halves `stitch` places. `guide` says how guides were asked for. `notes` are of all
    images, and `picture` says what the images show, if not what the model saw. `finer` says of which views a map is the
    mean, and how many cells a patch has on a side.

    Example:
        >>> Provenance(model="tiny", sources=("a.jpg", None), centred=False).as_metadata()
        {'model': 'tiny', 'sources': ['a.jpg', None], 'centred': False}
    """

    model: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str | None, ...] = ()
    device: str | None = None
    gradient: str | None = None
    uses_gradient: bool | None = None
    centred: bool | None = None
    start_layer: int | None = None
    readout: str | None = None
    grid: tuple[int, int] | None = None
    prefix: int | None = None
    options: Mapping[str, Any] | None = None
    versions: Mapping[str, str] | None = None
    class_specific: bool | None = None
    output: Output | None = None
    image_notes: tuple[tuple[str, ...], ...] = ()
    difference_instead: tuple[tuple[bool, ...], ...] = ()
    functions: tuple[tuple[tuple[str, float] | None, ...], ...] = ()
    positions: tuple[int, ...] = ()
    failures: tuple[Mapping[str, Any], ...] = ()
    stitch: Stitch | None = None
    beside: tuple[GuideFacts, ...] = ()
    guides: tuple[tuple[GuideFacts, ...], ...] = ()
    guide: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    picture: str | None = None
    finer: Mapping[str, Any] | None = None

    @property
    def of_texts(self) -> bool:
        """Returns whether the classes are texts that images were held against."""
        return self.origin.get("class_names") == "texts"

    def source(self, image: int = 0) -> str | None:
        """Returns the file name of an image that was given by its path."""
        return self.sources[image] if image < len(self.sources) else None

    def of_images(self, some: slice, count: int) -> "Provenance":
        """Returns the provenance of some of `count` images; what failed in the whole call is left out of a part."""
        held = {name: getattr(self, name) for name in PER_IMAGE}
        cut = {name: values[some] for name, values in held.items() if len(values) == count}
        return replace(self, **cut, failures=self.failures if len(range(count)[some]) == count else ())

    def as_metadata(self) -> dict[str, Any]:
        """Returns the provenance as plain JSON values."""
        said: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None or value == ():
                continue
            if one.name == "origin":
                said |= value
            elif one.name == "output":
                said |= value.record()
            else:
                said["guides" if one.name == "beside" else one.name] = _plain(value)
        return said


PER_IMAGE = ("sources", "image_notes", "difference_instead", "functions", "positions", "beside", "guides")


def _plain(value: Any) -> Any:
    if isinstance(value, GuideFacts):
        return {"class" if name == "index" else name: of for name, of in asdict(value).items()}
    if isinstance(value, Stitch):
        return _plain(asdict(value))
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return {name: _plain(of) for name, of in value.items()} if isinstance(value, dict) else value


def from_metadata(metadata: Mapping[str, Any]) -> Provenance:
    """Reads what `Provenance.as_metadata` gave; entries that it does not know go to `origin`.

    Raises:
        ValueError: for an entry of another kind.

    Example:
        >>> from_metadata({"sources": ["a.jpg"], "weights": "random"}).origin
        {'weights': 'random'}
    """
    known: dict[str, Any] = {}
    origin = {}
    for name, value in metadata.items():
        try:
            if name in _READERS and value is not None:
                known[name] = _READERS[name](value)
            elif name not in _READERS and name not in ("output", "probability", "guides"):
                origin[name] = value
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} of the metadata: {error}") from error
    if guides := metadata.get("guides"):
        flat = all(isinstance(one, Mapping) for one in guides)
        known["beside" if flat else "guides"] = _each(_facts if flat else _each(_facts))(guides)
    if "output" in metadata or "probability" in metadata:
        kind = metadata.get("output") or "logits"
        usual = {"scores": None, "embedding": None, "multilabel": "sigmoid"}.get(kind, "softmax")
        link = metadata.get("probability", usual)
        if kind not in get_args(Kind) or link not in (*get_args(Link), None):
            raise ValueError(f"output {kind!r} with the probability {link!r} is no kind of output")
        known["output"] = Output(kind, link=link)
    return Provenance(**known, origin=origin)


def _of(*kinds: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(
                f"it holds {type(value).__name__}, expected {' or '.join(kind.__name__ for kind in kinds)}"
            )
        return value

    return read


def _each(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda values: tuple(read(one) for one in _of(list, tuple)(values))


def _pair(value: Any) -> tuple[int, int]:
    first, second = _each(_of(int))(value)
    return first, second


def _function(value: Any) -> tuple[str, float] | None:
    if value is None:
        return None
    name, number = value
    return _of(str)(name), _of(int, float)(number)


def _facts(value: Any) -> GuideFacts:
    read: dict[str, Callable[[Any], Any]] = {
        "source": _of(str, type(None)),
        "drawn": _of(bool),
        "class": _of(int),
        "class_name": _of(str),
    }
    read |= {"logit": _of(int, float), "probability": _of(int, float)}
    found = {name: reader(value[name]) for name, reader in read.items()}
    return GuideFacts(**{"index" if name == "class" else name: of for name, of in found.items()})


def _stitch(value: Any) -> Stitch:
    read: dict[str, Callable[[Any], Any]] = dict.fromkeys(("layout", "side", "fit", "input"), _of(str))
    read |= dict.fromkeys(("original", "guide", "shown"), _box) | dict.fromkeys(("grid", "patch"), _pair)
    return Stitch(**{name: reader(value[name]) for name, reader in read.items()})


def _box(value: Any) -> Box:
    return Box(**{name: _of(int)(value[name]) for name in ("top", "left", "rows", "cols")})


_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("model", "device", "gradient", "readout", "picture"), _of(str)),
    **dict.fromkeys(("uses_gradient", "centred", "class_specific"), _of(bool)),
    **dict.fromkeys(("start_layer", "prefix"), _of(int)),
    **dict.fromkeys(("options", "versions", "guide", "finer"), _of(dict)),
    "grid": _pair,
    "sources": _each(_of(str, type(None))),
    "notes": _each(_of(str)),
    "image_notes": _each(_each(_of(str))),
    "difference_instead": _each(_each(_of(bool))),
    "functions": _each(_each(_function)),
    "positions": _each(_of(int)),
    "failures": _each(_of(dict)),
    "stitch": _stitch,
}


def failure_notes(failures: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Returns one sentence per cause, naming the images that have no map."""
    causes: dict[str, list[str]] = {}
    for one in failures:
        causes.setdefault(one["message"], []).append(one["source"] or f"number {one['image']}")
    return [
        f"{len(names)} of {count} could not be explained and {'is' if len(names) == 1 else 'are'} left out "
        f"({', '.join(names[:5])}{', …' if len(names) > 5 else ''}): {message}"
        for message, names in causes.items()
    ]
