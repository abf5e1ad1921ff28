"""The clock's rounds, the fit of memory, and peaks measured in processes of their own."""

import sys

import pytest
import torch

from vitrail.benchmark import bench, run
from vitrail.benchmark.measure import Ratio, interleave, ratio
from vitrail.benchmark.peaks import fit_peaks, peak_of
from vitrail.benchmark.rows import LIMIT, stored
from vitrail.benchmark.run import PRESETS, Plan
from vitrail.benchmark.subject import Case
from vitrail.errors import OptionError


def test_rounds_are_interleaved_and_warm_up_is_apart() -> None:
    order: list[str] = []
    ticks = iter(range(1000))
    times = interleave(
        {name: lambda name=name: order.append(name) for name in "abc"},
        rounds=2,
        warmup=1,
        clock=lambda: float(next(ticks)),
    )
    assert "".join(order) == "abc" + "cba" + "abc"
    assert times.seconds == {name: [1.0, 1.0] for name in "abc"}


def test_what_runs_out_of_memory_is_left_out() -> None:
    calls: list[str] = []

    def greedy() -> None:
        calls.append("greedy")
        raise torch.OutOfMemoryError("CUDA out of memory")

    times = interleave({"greedy": greedy, "modest": lambda: calls.append("modest")}, rounds=2)
    assert calls == ["greedy", "modest", "modest", "modest"]
    assert times.failed == {"greedy": "out of memory"}
    assert list(times.seconds) == ["modest"]
    with pytest.raises(RuntimeError, match="something else"):
        interleave({"wrong": lambda: (_ for _ in ()).throw(RuntimeError("something else"))}, rounds=1)


def test_a_ratio_is_of_the_same_round() -> None:
    # The second round ran at half the speed: medians by themselves would divide 20 by 1.
    assert ratio([2.0, 20.0, 30.0], [1.0, 10.0, 1.0]) == Ratio(2.0, 2.0, 16.0)


def test_the_fit_finds_what_grows() -> None:
    peaks = {n: 2**20 + 300 * n + 4 * n**2 for n in (197, 577, 1025, 4097)}
    fit = fit_peaks(peaks)
    assert fit is not None
    assert (fit.constant, fit.linear, fit.quadratic) == pytest.approx((2**20, 300, 4), rel=1e-6)
    assert fit.dominant == "quadratic"
    assert fit.quadratic_share == pytest.approx(4 * 4097**2 / peaks[4097])
    assert fit_peaks({197: 100, 577: 200, 1025: None}) is None


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory's peak is read from Linux")
def test_peaks_in_a_process_of_their_own() -> None:
    # 2305 tokens: A of a block is 20 MiB a head, an activation .6 MiB. The first look at the model counts too.
    case = Case("test_vit", 768, 1)
    ours, _ = peak_of(case, "vitrail complete")
    theirs, _ = peak_of(case, stored("gae"))
    limit, _ = peak_of(case, LIMIT)
    assert ours is not None
    assert theirs is not None
    assert limit is not None
    assert theirs > 20 * 2**20
    # Ours may even be below the limit's: it keeps no output of an attention beside what the next layer keeps.
    assert min(limit, ours) > 0
    assert max(limit, ours) < theirs / 2


@pytest.mark.slow
def test_a_peak_that_cannot_be_measured_says_why() -> None:
    assert peak_of(Case("no_such_vit", 64, 1), LIMIT)[1].startswith("timm has no model 'no_such_vit'")


def test_plans_are_checked() -> None:
    assert [str(case) for case in Plan(("vit_a",), (64, 96), (1, 2), (1,), 1, cross=True).cases] == [
        "vit_a, 64×64 px, batch 1",
        "vit_a, 64×64 px, batch 2",
        "vit_a, 96×96 px, batch 1",
        "vit_a, 96×96 px, batch 2",
    ]
    assert len(PRESETS["full"].cases) == 4 * 4 * 3
    own = Plan(("vit_a",), (64,), (1,), (1,), 1, num_classes=5)
    assert (own.weights("vit_a"), own.weights("vit_of_the_sweep")) == ({"num_classes": 5}, {})
    with pytest.raises(OptionError, match="clock='sun' is none of wall, processor"):
        Plan(("vit_a",), (64,), (1,), (1,), 1, clock="sun")
    with pytest.raises(OptionError, match="clock='processor' tells nothing of work on cuda"):
        Plan(("vit_a",), (64,), (1,), (1,), 1, clock="processor", device="cuda")
    with pytest.raises(OptionError, match="targets: 0 must be 1 or more"):
        Plan(("vit_a",), (64,), (1,), (0,), 1)
    with pytest.raises(OptionError, match=r"longest=96 is not above the sizes .*, \(64, 96\)"):
        Plan(("vit_a",), (64,), (1,), (1,), 1, along=(64, 96), longest=96)


def test_at_the_longest_only_the_peaks_of_few_methods_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str]] = []

    def peak(case: Case, row: str, **_: object) -> tuple[int, str]:
        asked.append((case.size, row))
        return case.size**2, ""

    monkeypatch.setattr(run, "peak_of", peak)
    plan = Plan(("test_vit",), (64,), (1,), (), 1, 0, tokens="test_vit", along=(64, 96), longest=160, methods=("gae",))
    table = bench(plan).memory[0]
    assert table.sizes == [64, 96, 160]
    assert [row for size, row in asked if size == 160] == [LIMIT, "vitrail complete", "vitrail gae", stored("gae")]
    rows = {row.name: row for row in table.rows}
    assert rows["vitrail complete"].bytes[101] == 160**2
    assert rows["vitrail absolute"].bytes == {17: 64**2, 37: 96**2, 101: None}
    assert rows["vitrail absolute"].notes == {101: "not run"}
