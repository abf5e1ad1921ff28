"""The benchmark run: tables of times, times against tokens and targets, peaks of memory."""

import os
from collections.abc import Callable, Sequence
from datetime import date
from statistics import median
from typing import Any

import torch

from ..explain import explain
from .fit import fit_peaks
from .machine import describe_machine, describe_versions
from .peak import peak_of
from .peers import PEERS
from .plan import CLOCKS, Plan
from .results import Measured, MemoryTable, Peak, Results, TargetTable, TimeTable, TokenTable
from .rows import LIMIT, Row, as_published, rows_of, stored
from .subject import Case, Subject
from .timing import Times, interleave, ratio

__all__ = ["bench"]

Progress = Callable[[str, int, int], object]


def bench(
    plan: Plan,
    *,
    command: str = "",
    progress: Progress = lambda *_: None,
    found: Callable[[Results], object] = lambda _: None,
) -> Results:
    """Measure what the plan says; `progress` is called with (what is being measured, steps done, steps in all).

    `found` is called with the results so far after each table, for one may have to stop before the end.

    Every ratio is taken within one run of rounds: each row once in each, in turn, the median over the rounds.

    Raises:
        ModelError: for a model that the plain passes and the stored-maps form are not written for.
    """
    packages = describe_versions(tuple(dict.fromkeys(peer.package for peer in PEERS)))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    results = Results(
        date=date.today().isoformat(),
        command=command,
        device=plan.device,
        dtype=plan.dtype,
        clock=plan.clock,
        machine=", ".join(part for part in (describe_machine(plan.device), packages) if part),
        load=load,
        rounds=plan.rounds,
        warmup=plan.warmup,
    )
    for case in plan.cases:
        results.times.append(_time_table(plan, case, plan.methods, peers=True, progress=progress))
        found(results)
    for model in plan.models if plan.targets else ():
        results.targets.append(_target_table(plan, model, progress))
        found(results)
    if plan.along:
        results.tokens.append(_token_table(plan, progress))
        found(results)
    if plan.along and plan.memory:
        results.memory.append(_memory_table(plan, progress))
        found(results)
    return results


def _subject(plan: Plan, case: Case) -> Subject:
    how = {"device": plan.device, "dtype": getattr(torch, plan.dtype), "seed": plan.seed}
    return Subject.make(case, weights=plan.weights(case.model), **how)


def _time_table(plan: Plan, case: Case, methods: Sequence[str] | None, *, peers: bool, progress: Progress) -> TimeTable:
    subject = _subject(plan, case)
    rows = rows_of(subject, methods, peers=peers)
    times = interleave(
        {row.name: row.work for row in rows if row.work is not None},
        rounds=plan.rounds,
        warmup=plan.warmup,
        clock=CLOCKS[plan.clock],
        synchronise=subject.synchronise,
        progress=lambda done, total: progress(f"{case}", done, total),
    )
    return TimeTable(case, subject.tokens, [_measured(row, times, case.batch) for row in rows])


def _measured(row: Row, times: Times, batch: int) -> Measured:
    if row.name not in times.seconds:
        return Measured(row.name, row.passes, note=row.why_not or times.failed[row.name])
    taken, base, slow = (times.seconds.get(name) for name in (row.name, LIMIT, stored("gae")))
    assert taken is not None
    seconds = median(taken)
    return Measured(
        row.name,
        row.passes,
        seconds=seconds,
        images_per_second=batch / seconds,
        over_limit=ratio(taken, base) if base else None,
        faster_than_stored=ratio(slow, taken).median if slow else None,
        agreement=row.agreement() if row.agreement else None,
    )


def _token_table(plan: Plan, progress: Progress) -> TokenTable:
    cases = [Case(plan.tokens, size, 1) for size in plan.along]
    return TokenTable(
        plan.tokens, 1, [_time_table(plan, case, plan.few, peers=False, progress=progress) for case in cases]
    )


def _target_table(plan: Plan, model: str, progress: Progress) -> TargetTable:
    case = Case(model, plan.sizes[0], 1)
    subject = _subject(plan, case)
    work: dict[str, Callable[[], Any]] = {}
    for method in plan.few:
        for count in plan.targets:
            targets = [index % subject.module.num_classes for index in range(count)]
            work[f"{method} {count} together"] = lambda method=method, targets=targets: explain(
                subject.model, subject.images, [targets], method=method, **as_published(method)
            )
            work[f"{method} {count} apart"] = lambda method=method, targets=targets: [
                explain(subject.model, subject.images, target, method=method, **as_published(method))
                for target in targets
            ]
    times = interleave(
        work,
        rounds=plan.rounds,
        warmup=plan.warmup,
        clock=CLOCKS[plan.clock],
        synchronise=subject.synchronise,
        progress=lambda done, total: progress(f"{case}; several targets", done, total),
    ).seconds
    first = min(plan.targets)
    share = {
        method: {
            count: ratio(times[f"{method} {count} together"], times[f"{method} {count} apart"])
            for count in plan.targets
        }
        for method in plan.few
    }
    calls = {
        method: {
            count: first * ratio(times[f"{method} {count} together"], times[f"{method} {first} apart"]).median
            for count in plan.targets
        }
        for method in plan.few
    }
    return TargetTable(case, share, calls)


def _memory_table(plan: Plan, progress: Progress) -> MemoryTable:
    names = [LIMIT, *(f"vitrail {method}" for method in plan.remembered), stored("gae")]
    sizes = [*plan.along, *([] if plan.longest is None else [plan.longest])]
    cases = [Case(plan.tokens, size, 1) for size in sizes]
    tokens = [_tokens(case) for case in cases]
    slow_ones = {f"vitrail {method}" for method in plan.remembered if method not in plan.few}
    rows, total = [], len(names) * len(cases)
    weights = plan.weights(plan.tokens)
    for name in names:
        peaks: dict[int, int | None] = {}
        notes: dict[int, str] = {}
        for case, number in zip(cases, tokens, strict=True):
            if case.size == plan.longest and name in slow_ones:
                peaks[number], note = None, "not run"
            else:
                peaks[number], note = peak_of(case, name, device=plan.device, dtype=plan.dtype, weights=weights)
            notes |= {number: note} if note else {}
            progress(f"{plan.tokens}; peaks of memory", len(rows) * len(cases) + len(peaks), total)
        rows.append(Peak(name, peaks, notes, fit_peaks(peaks)))
    return MemoryTable(plan.tokens, 1, sizes, tokens, rows)


def _tokens(case: Case) -> int:
    """The number of tokens, from a model without weights."""
    with torch.device("meta"):
        import timm

        module: Any = timm.create_model(case.model.removeprefix("timm/"), img_size=case.size)
    return int(module.patch_embed.num_patches) + module.num_prefix_tokens
