"""What was asked, in full, so that a reader can ask it again."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..evaluate.run_reader import EvaluationRun
from .leaderboard import protocol_info, run_names

__all__ = ["ProtocolFacts", "RunFacts", "asked", "run_facts"]

APART = {"format", "methods", "protocols"}  # said elsewhere, or of no use to a reader


class ProtocolFacts(NamedTuple):
    """A protocol: what it measures, its options in each run ("–" where a run lacks it), and where it is from."""

    name: str
    summary: str
    details: str
    reference: str
    options: Mapping[str, Sequence[str]]
    runs: Sequence[str]


class RunFacts(NamedTuple):
    """A run's name and its manifest as pairs of words."""

    name: str
    facts: Sequence[tuple[str, str]]


def asked(runs: Sequence[EvaluationRun]) -> list[ProtocolFacts]:
    """Returns each protocol of the runs."""
    names = run_names(runs)
    found = []
    for name in dict.fromkeys(protocol for run in runs for protocol in run.protocols):
        info = protocol_info(name)
        own = [
            (run_name, run.protocols[name]) for run_name, run in zip(names, runs, strict=True) if name in run.protocols
        ]
        options = dict.fromkeys(option for _, some in own for option in some)
        table = {option: [_value(some[option]) if option in some else "–" for _, some in own] for option in options}
        text = inspect.getdoc(info.function) or "" if info else ""
        details = " ".join(text.partition("\n\n")[2].split())
        found.append(
            ProtocolFacts(
                name,
                info.summary if info else "A protocol that is not registered here.",
                details,
                info.reference if info else "",
                table,
                [run_name for run_name, _ in own],
            )
        )
    return found


def run_facts(runs: Sequence[EvaluationRun]) -> list[RunFacts]:
    """Returns the manifest of each run, mappings opened up."""
    return [
        RunFacts(name, [("folder", str(run.folder)), ("methods", ", ".join(run.methods)), *_facts(run.manifest)])
        for name, run in zip(run_names(runs), runs, strict=True)
    ]


def _facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in manifest.items():
        if key in APART:
            continue
        if isinstance(value, Mapping):
            found += [(f"{key}: {inner}", _value(one)) for inner, one in value.items() if inner != "class_names"]
        else:
            found.append((key, _value(value)))
    return found


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(_value(one) for one in value)
    return json.dumps(value, ensure_ascii=False)
