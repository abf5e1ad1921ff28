"""One model asked by several threads at once: each gets the map that it would get alone."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import FAMILIES
from matrix import EVERYWHERE, OPTIONS
from torch import nn

import vitrail
from vitrail.attention.modules import at_input, at_output

THREADS = 3
TIMES = 2
HOOKED = {"legrad", "attcat", "fullgrad_plus", "gradcam", "grad_eclip"}  # those that reach for modules


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads take turns after every few instructions, not after the milliseconds that a small pass takes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(info.name, marks=() if info.name in HOOKED | EVERYWHERE else pytest.mark.slow)
        for info in vitrail.list_methods()
    ],
)
def test_every_method_bears_other_threads(method: str) -> None:
    family = FAMILIES["timm_vit"]
    model = family.model()
    pictures = [family.images(1, seed=seed) for seed in range(THREADS)]
    alone = [
        vitrail.explain(model, picture, 1, method=method, **OPTIONS.get(method, {})).scores for picture in pictures
    ]
    together = threading.Barrier(THREADS)

    def ask(number: int) -> list[torch.Tensor]:
        together.wait()
        asked = (
            vitrail.explain(model, pictures[number], 1, method=method, **OPTIONS.get(method, {})) for _ in range(TIMES)
        )
        return [ex.scores for ex in asked]

    with ThreadPoolExecutor(THREADS) as pool:
        for expected, found in zip(alone, pool.map(ask, range(THREADS)), strict=True):
            for scores in found:
                torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_another_thread_may_meet_a_hook_that_is_half_registered() -> None:
    """PyTorch enters a hook first, and that it takes keywords after."""
    module, seen = nn.Linear(2, 2), []
    with at_input(module, lambda tensor: seen.append(tensor) or tensor), ThreadPoolExecutor(1) as pool:
        module._forward_pre_hooks_with_kwargs.clear()
        assert pool.submit(module, torch.ones(1, 2)).result().shape == (1, 2)
    assert not seen


def test_a_module_is_seen_by_the_thread_that_looks() -> None:
    module = nn.Identity()
    ones, seen = torch.ones(2), []

    def see(values: torch.Tensor) -> torch.Tensor:
        seen.append(values)
        return values + 1

    with at_input(module, see), at_output(module, see):
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(module, ones).result(), ones)
        assert not seen
        assert torch.equal(module(ones), ones + 2)
    assert len(seen) == 2
