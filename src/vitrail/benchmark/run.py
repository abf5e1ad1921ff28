"""The benchmark run: what is to be measured, by presets and options, and the tables of times and peaks of memory."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..errors import OptionError
from ..explain import explain
from .measure import Times, describe_machine, describe_versions, interleave, ratio
from .peaks import fit_peaks, peak_of
from .peers import PEERS
from .results import Measured, MemoryTable, Peak, Results, TargetTable, TimeTable, TokenTable
from .rows import LIMIT, Row, as_published, rows_of, stored
from .subject import Case, Subject

__all__ = ["CLOCKS", "PRESETS", "Plan", "bench"]

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Plan:
    """Which models, sizes of image, batches and numbers of targets; how many rounds.

    All rows are timed for every model at every batch, at the first size; with `cross` at every size. `tokens` names the
    model that is measured against tokens, at `along` sizes with one image: the time of the methods in `few`, the peak
    of memory of those in `remembered`. At `longest`, where one pass takes minutes, only the peaks of `few` are taken.
    `clock` is "wall", or "processor" for the time that the process was given.
    """

    models: tuple[str, ...]
    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    targets: tuple[int, ...]
    rounds: int
    warmup: int = 1
    cross: bool = False
    methods: tuple[str, ...] | None = None
    tokens: str = "vit_small_patch16_224"
    along: tuple[int, ...] = ()
    longest: int | None = None
    few: tuple[str, ...] = ("complete", "gae")
    memory: bool = True
    remembered: tuple[str, ...] = ("complete", "gae", "absolute", "gmar_l2")
    clock: str = "wall"
    device: str = "cpu"
    dtype: str = "float32"
    checkpoint: Path | None = None
    num_classes: int | None = None
    class_names: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("models", "sizes", "batches"):
            if not getattr(self, name):
                raise OptionError(f"{name} is empty: there is nothing to measure")
        if self.clock not in CLOCKS:
            raise OptionError(f"clock={self.clock!r} is none of {', '.join(CLOCKS)}")
        if self.clock == "processor" and self.device != "cpu":
            raise OptionError(f"clock='processor' tells nothing of work on {self.device}: use 'wall'")
        numbers = {"sizes": self.sizes, "batches": self.batches, "targets": self.targets, "rounds": (self.rounds,)}
        for name, some in numbers.items():
            wrong = [number for number in some if number < 1]
            if wrong:
                raise OptionError(f"{name}: {wrong[0]} must be 1 or more")
        if self.checkpoint is not None and len(set(self.models)) > 1:
            raise OptionError(f"one checkpoint fits one model, and {len(self.models)} are named")
        if self.longest is not None and self.longest <= max(self.along, default=0):
            raise OptionError(f"longest={self.longest} is not above the sizes along which time is taken, {self.along}")

    def weights(self, model: str) -> dict[str, Any]:
        """Returns how that model is loaded; the given weights belong only to the models that were named."""
        given = {name: getattr(self, name) for name in ("checkpoint", "num_classes", "class_names")}
        return {name: value for name, value in given.items() if value is not None} if model in self.models else {}

    @property
    def cases(self) -> list[Case]:
        """Returns the cases whose rows are all timed."""
        sizes = self.sizes if self.cross else self.sizes[:1]
        return [Case(model, size, batch) for model in self.models for size in sizes for batch in self.batches]


PRESETS: Mapping[str, Plan] = {
    "quick": Plan(
        models=("vit_tiny_patch16_224",),
        sizes=(64,),
        batches=(2,),
        targets=(1, 2),
        rounds=1,
        tokens="vit_tiny_patch16_224",
        along=(64,),
        remembered=("complete",),
    ),
    "default": Plan(
        models=("vit_base_patch16_224",),
        sizes=(224,),
        batches=(8,),
        targets=(1, 5, 20),
        rounds=5,
        along=(224, 384, 518, 1024),
        longest=2048,
    ),
    "full": Plan(
        models=tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
        sizes=(224, 384, 518, 1024),
        batches=(1, 8, 32),
        targets=(1, 5, 20),
        rounds=7,
        cross=True,
        tokens="vit_base_patch16_224",
        along=(224, 384, 518, 1024, 2048),
    ),
}

Progress = Callable[[str, int, int], object]


def bench(
    plan: Plan,
    *,
    command: str = "",
    progress: Progress = lambda *_: None,
    found: Callable[[Results], object] = lambda _: None,
) -> Results:
    """Measures what the plan says; `progress` is called with (what is being measured, steps done, steps in all).

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
    """Returns the number of tokens, from a model without weights."""
    with torch.device("meta"):
        import timm

        module: Any = timm.create_model(case.model.removeprefix("timm/"), img_size=case.size)
    return int(module.patch_embed.num_patches) + module.num_prefix_tokens
