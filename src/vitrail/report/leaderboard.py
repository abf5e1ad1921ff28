"""The leaderboard: every method of every run against every number that its protocols give, with all comparisons."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RunFolderError
from ..evaluate.run_reader import EvaluationRun
from ..metrics import PROTOCOLS, ProtocolInfo
from ..metrics.aggregation import RESAMPLES, Curves, Interval, Statistic
from .significance import Paired, intervals, paired, per_image, ranks

__all__ = ["ALPHA", "Board", "Column", "Entry", "build_board", "protocol_info", "run_names"]

ALPHA = 0.05  # what is called a difference: at this level after Holm's correction


@dataclass(frozen=True)
class Entry:
    """A method of a run; `label` is its own on the page, with the run's name in front where there are several."""

    run: int
    method: str
    label: str


@dataclass(frozen=True, eq=False)
class Column:
    """One number of one protocol, for each entry; everything by the entries' labels.

    `ranks`, `best` and `tied` (those that cannot be told from the best) are empty where neither way is better.
    """

    protocol: str
    name: str
    better: int
    cells: Mapping[str, Interval]
    ranks: Mapping[str, float]
    best: frozenset[str]
    tied: frozenset[str]
    pairs: Mapping[tuple[str, str], Paired]
    statistics: Mapping[str, Statistic] = field(repr=False)
    decimals: int = 3

    @property
    def title(self) -> str:
        """Returns the protocol and the number."""
        return f"{self.protocol}: {self.name}"

    def text(self, value: float, *, sign: bool = False) -> str:
        """Returns a value with the digits that its uncertainty leaves it, and a real minus."""
        if not math.isfinite(value):
            return "–"
        digits = f"{abs(value):.{self.decimals}f}"
        if not float(digits):
            return digits
        return ("−" if value < 0 else "+" if sign else "") + digits


@dataclass(frozen=True, eq=False)
class Board:
    """All columns, and all curves by (label, protocol). `images` are the images' own names in the rows of a statistic.

    `mean_rank` is over the columns in which one way is better.
    """

    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    curves: Mapping[tuple[str, str], Curves]
    images: Sequence[Any]
    mean_rank: Mapping[str, float]
    resamples: int
    seed: int

    @property
    def protocols(self) -> list[str]:
        """Returns the protocols of all runs, each once."""
        return list(dict.fromkeys(protocol for _, protocol in self.curves))

    def column(self, title: str) -> Column | None:
        """Returns the column of that title."""
        return next((one for one in self.columns if one.title == title), None)


def build_board(runs: Sequence[EvaluationRun], *, resamples: int = RESAMPLES, seed: int = 0) -> Board:
    """Puts the numbers of all runs side by side; images of several runs are the same where their names are.

    A protocol that they measured with different options is shown apart for each, since such numbers do not compare.

    Raises:
        RunFolderError: for rows that a protocol of this version cannot read.
    """
    names = run_names(runs)
    entries = tuple(
        Entry(number, method, method if len(runs) == 1 else f"{names[number]}/{method}")
        for number, run in enumerate(runs)
        for method in run.methods
    )
    places, images = _places(runs)
    curves: dict[tuple[str, str], Curves] = {}
    found: dict[tuple[str, str], dict[str, Statistic]] = {}
    for shown, (protocol, having) in _measured(runs).items():
        for entry in (one for one in entries if one.run in having):
            own = curves[entry.label, shown] = runs[entry.run].curves(entry.method, protocol)
            for name, statistic in _summary(runs[entry.run], protocol, own).items():
                found.setdefault((shown, name), {})[entry.label] = _placed(
                    statistic, places[entry.run](own.images), len(images)
                )
    columns = _columns(found, resamples, seed)
    return Board(entries, columns, curves, images, _mean_ranks(entries, columns), resamples, seed)


def run_names(runs: Sequence[EvaluationRun]) -> list[str]:
    """Returns the runs' folders by name, numbered where two are called alike."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def protocol_info(name: str) -> ProtocolInfo | None:
    """Returns a protocol's registry entry; one run twice with other options is called "name:something"."""
    return PROTOCOLS.get(name) or PROTOCOLS.get(name.partition(":")[0])


def _measured(runs: Sequence[EvaluationRun]) -> Mapping[str, tuple[str, list[int]]]:
    """The protocols by the names under which they are shown, and the runs that have them.

    One that runs measured with different options is several, told apart by these: their numbers are not comparable.
    """
    found = {}
    for protocol in dict.fromkeys(name for run in runs for name in run.protocols):
        kinds: dict[str, list[int]] = {}
        for number, run in enumerate(runs):
            if protocol in run.protocols:
                kinds.setdefault(json.dumps(run.protocols[protocol], sort_keys=True), []).append(number)
        options = [dict(runs[having[0]].protocols[protocol]) for having in kinds.values()]
        names = dict.fromkeys(key for one in options for key in one)
        apart = [name for name in names if len({json.dumps(one.get(name, "–")) for one in options}) > 1]
        for one, having in zip(options, kinds.values(), strict=True):
            said = ", ".join(f"{name}={one.get(name, '–')}" for name in apart)
            found[f"{protocol} [{said}]" if said else protocol] = (protocol, having)
    return found


def _summary(run: EvaluationRun, protocol: str, curves: Curves) -> Mapping[str, Statistic]:
    if not len(curves.images):
        return {}
    info = protocol_info(protocol)
    if info is None:  # written by somebody's own protocol, which is not registered here
        means = {name: _finite_mean(values) for name, values in curves.values.items()}
        return {f"mean {name}": Statistic.mean(values, better=0) for name, values in means.items()}
    try:
        return info.summarise(curves, **run.protocols[protocol])
    except Exception as error:  # measures or options of another version, or of nobody
        raise RunFolderError(
            f"{run.folder}: the rows of {protocol} are not those that this Vitrail writes "
            f"({type(error).__name__}: {error}); it is the run of another version: evaluate again"
        ) from error


def _finite_mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    over, under = np.where(known, values, 0.0).sum(axis=1, keepdims=True), known.sum(axis=1, keepdims=True)
    return per_image(Statistic(over, under.astype(np.float64)))


def _places(runs: Sequence[EvaluationRun]) -> tuple[list[Callable[[np.ndarray], np.ndarray]], Sequence[Any]]:
    """For each run what gives the rows of its images among all images, and the images' names."""
    if len(runs) == 1:
        there = list(runs[0].sources())
        return [_rows(there, range(len(there)))], list(runs[0].sources().values())
    known: dict[str, int] = {}
    places = []
    for run in runs:
        sources = run.sources()
        places.append(_rows(list(sources), [known.setdefault(source, len(known)) for source in sources.values()]))
    return places, list(known)


def _rows(images: Sequence[int], rows: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    """The rows by image, which ascend."""
    there, found = np.asarray(images, dtype=np.int64), np.asarray(rows, dtype=np.int64)
    return lambda asked: found[np.searchsorted(there, asked)]


def _placed(statistic: Statistic, rows: np.ndarray, size: int) -> Statistic:
    """The same statistic among the images of all runs and methods: those it lacks do not count."""
    over, under = (np.zeros((size, statistic.numerator.shape[1])) for _ in range(2))
    over[rows], under[rows] = statistic.numerator, statistic.denominator
    return Statistic(over, under, statistic.better)


def _columns(found: Mapping[tuple[str, str], Mapping[str, Statistic]], resamples: int, seed: int) -> tuple[Column, ...]:
    keys = [(key, label) for key, own in found.items() for label in own]
    measured = intervals([found[key][label] for key, label in keys], resamples=resamples, seed=seed)
    cells = dict(zip(keys, measured, strict=True))
    tables = paired(list(found.values()), resamples=resamples, seed=seed)
    return tuple(
        _column(key, own, {label: cells[key, label] for label in own}, pairs)
        for (key, own), pairs in zip(found.items(), tables, strict=True)
    )


def _column(
    key: tuple[str, str],
    own: Mapping[str, Statistic],
    cells: Mapping[str, Interval],
    pairs: Mapping[tuple[str, str], Paired],
) -> Column:
    better = next(iter(own.values())).better
    places: dict[str, float] = {}
    best: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset()
    known = [label for label, cell in cells.items() if cell.size]
    if better and known:
        places = dict(zip(known, ranks([cells[label].mean for label in known], better), strict=True))
        first = min(places.values())
        best = frozenset(label for label in known if places[label] == first)
        tied = frozenset(
            label
            for label in set(known) - best
            if any(not pairs[one, label].adjusted < ALPHA for one in best)  # NaN: nothing is known
        )
    return Column(*key, better, cells, places, best, tied, pairs, own, _decimals(list(cells.values())))


def _decimals(cells: Sequence[Interval]) -> int:
    """Two digits of half the usual interval; three decimals where there is none."""
    halves = [(one.high - one.low) / 2 for one in cells if one.size and one.high > one.low]
    return min(max(1 - math.floor(math.log10(float(np.median(halves)))), 0), 6) if halves else 3


def _mean_ranks(entries: Sequence[Entry], columns: Sequence[Column]) -> Mapping[str, float]:
    found = {}
    for entry in entries:
        own = [column.ranks[entry.label] for column in columns if entry.label in column.ranks]
        found[entry.label] = float(np.mean(own)) if own else math.nan
    return found
