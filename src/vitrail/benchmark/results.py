"""What was found, as plain values that go into JSON as they are."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .measure import Ratio
from .subject import Case

__all__ = ["Measured", "MemoryTable", "Peak", "Results", "TargetTable", "TimeTable", "TokenFit", "TokenTable"]


@dataclass(frozen=True)
class Measured:
    """One row: median seconds, images per second, the time over the limit's, and how much faster than stored GAE.

    All are None where it could not be run, which `note` explains. `agreement` is max|Δ| / max|theirs| of the map
    against ours of the same formula.
    """

    name: str
    passes: str
    seconds: float | None = None
    images_per_second: float | None = None
    over_limit: Ratio | None = None
    faster_than_stored: float | None = None
    agreement: float | None = None
    note: str = ""


@dataclass(frozen=True)
class TimeTable:
    """All rows of one case."""

    case: Case
    tokens: int
    rows: list[Measured]


@dataclass(frozen=True)
class TokenTable:
    """The same few rows at growing numbers of tokens; one time table for each size."""

    model: str
    batch: int
    tables: list[TimeTable]


@dataclass(frozen=True)
class TargetTable:
    """Several targets of one image: the time of one call over that of as many calls, by method and number.

    `calls` is the same time in units of one call for one target.
    """

    case: Case
    share: dict[str, dict[int, Ratio]]
    calls: dict[str, dict[int, float]]


@dataclass(frozen=True)
class TokenFit:
    """Peak memory in bytes as constant + linear · N + quadratic · N², no part negative; shares at the most tokens."""

    constant: float
    linear: float
    quadratic: float
    linear_share: float
    quadratic_share: float

    @property
    def dominant(self) -> str:
        """Returns the larger of what grows with the tokens: "linear" or "quadratic"."""
        return "linear" if self.linear_share >= self.quadratic_share else "quadratic"


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak of one pass beyond weights and images, by number of tokens; None where it could not be run."""

    name: str
    bytes: dict[int, int | None]
    notes: dict[int, str] = field(default_factory=dict)
    fit: TokenFit | None = None


@dataclass(frozen=True)
class MemoryTable:
    """Peaks of one model; the first row is the plain model's limit."""

    model: str
    batch: int
    sizes: list[int]
    tokens: list[int]
    rows: list[Peak]


@dataclass(frozen=True)
class Results:
    """A whole run of the benchmark."""

    date: str
    command: str
    device: str
    dtype: str
    clock: str
    machine: str
    load: float | None
    rounds: int
    warmup: int
    times: list[TimeTable] = field(default_factory=list)
    tokens: list[TokenTable] = field(default_factory=list)
    targets: list[TargetTable] = field(default_factory=list)
    memory: list[MemoryTable] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Returns the same as lists and dictionaries."""
        return asdict(self)
