"""What a sceptical reader should know before the numbers: where runs differ, what is unfinished, what is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluate.run_reader import EvaluationRun
from .leaderboard import Board, protocol_info, run_names

__all__ = ["warnings"]

FEW = 30  # images below which a percentile interval is too short (Efron and Tibshirani 1993, section 13)


def warnings(runs: Sequence[EvaluationRun], board: Board) -> list[str]:
    """Returns one sentence each, the gravest first."""
    names = run_names(runs)
    found = []
    for name, run in zip(names, runs, strict=True):
        if not len(run.rows):
            found.append(f"{name} holds no measurement yet.")
        elif not run.finished:
            found.append(f"{name} is not finished: {run.blocks} of {run.expected_blocks} blocks of images are there.")
        if len(run.rows):
            found += [f"{name}: {protocol} measured nothing: {why}." for protocol, why in run.unmeasured().items()]
        found += [f"{name} {note}." for note in run.notes]
        found += [
            f"{name}: no protocol {protocol!r} is registered here; its measures are shown as plain means."
            for protocol in run.protocols
            if protocol_info(protocol) is None
        ]
    found += _differing(names, runs)
    found += _coverage(board)
    return found


def _differing(names: Sequence[str], runs: Sequence[EvaluationRun]) -> list[str]:
    first, found = runs[0], []
    for name, run in zip(names[1:], runs[1:], strict=True):
        pair = f"{names[0]} and {name}"
        for key, what in (("data", "data"), ("model", "model"), ("checkpoint", "checkpoint"), ("seed", "seed")):
            here, there = first.manifest.get(key), run.manifest.get(key)
            if here != there:
                found.append(f"{pair} differ in their {what}: {_difference(here, there)}.")
        for protocol in first.protocols.keys() & run.protocols.keys():
            here, there = dict(first.protocols[protocol]), dict(run.protocols[protocol])
            if here != there:
                said = _difference(here, there)
                found.append(
                    f"{pair} measured {protocol} differently ({said}): shown apart, for the numbers do not compare."
                )
        here, there = first.manifest.get("versions"), run.manifest.get("versions")
        if here != there:
            found.append(f"{pair} were made by different versions: {_difference(here, there)}.")
        common = set(first.sources().values()) & set(run.sources().values())
        found.append(
            f"{pair} have {len(common)} images of the same name in common; differences between them are of these."
            if common
            else f"{pair} have no image of the same name: differences between them cannot be paired, and are not shown."
        )
    return found


def _difference(here: Any, there: Any) -> str:
    """What differs, in a few words."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        keys = [key for key in dict.fromkeys([*here, *there]) if here.get(key) != there.get(key)]
        said = [f"{key} {_short(here.get(key))} against {_short(there.get(key))}" for key in keys[:4]]
        return ", ".join([*said, *(["…"] if len(keys) > 4 else [])])
    return f"{_short(here)} against {_short(there)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _coverage(board: Board) -> list[str]:
    """Where methods are averages over different images, and where there are too few of them."""
    fewer_in: dict[str, list[str]] = {}
    few_in: dict[int, list[str]] = {}
    for protocol in board.protocols:
        own = [column for column in board.columns if column.protocol == protocol]
        sizes = {label: cell.size for column in own[:1] for label, cell in column.cells.items()}
        if not sizes:
            continue
        most = max(sizes.values())
        fewer = [f"{label} {size}" for label, size in sizes.items() if size < most]
        if fewer:
            fewer_in.setdefault(f"most: {most}; {', '.join(fewer)}", []).append(protocol)
        if 0 < most < FEW:
            few_in.setdefault(most, []).append(protocol)
    return [
        *(
            f"{', '.join(protocols)}: not all methods are measured on the same images ({said}). Their means are over "
            "different images; the paired differences are over those that both have."
            for said, protocols in fewer_in.items()
        ),
        *(
            f"{', '.join(protocols)}: {most} images are few; the intervals are too short to be 95 % ones."
            for most, protocols in few_in.items()
        ),
    ]
