"""Threads that keep the order, work no further ahead than they may, and end when the caller does."""

import threading
import time
from contextlib import closing

import pytest

from vitrail.cli.image_run import in_threads


def test_the_order_is_kept_whoever_is_first() -> None:
    def slowest_first(number: int) -> int:
        time.sleep((9 - number) / 200)
        return number**2

    for prompt in (False, True):
        done = in_threads(slowest_first, range(10), workers=4, depth=4, prompt=prompt)
        assert [(item, made.result()) for item, made in done] == [(n, n**2) for n in range(10)]


@pytest.mark.parametrize("prompt", [False, True])
def test_no_more_than_the_depth_lies_ahead(prompt: bool) -> None:
    drawn = []

    def items():
        for number in range(100):
            drawn.append(number)
            yield number

    most = 0
    for taken, (_, made) in enumerate(in_threads(abs, items(), workers=2, depth=5, prompt=prompt), 1):
        made.result()
        most = max(most, len(drawn) - taken)
    assert len(drawn) == 100
    assert most <= 5


def test_an_error_stays_with_its_item() -> None:
    found = [made.exception() for _, made in in_threads(int, ["1", "x", "3"], depth=1)]
    assert [type(error) for error in found] == [type(None), ValueError, type(None)]


def test_what_has_not_begun_when_the_caller_ends_is_dropped() -> None:
    begun: list[int] = []
    go = threading.Event()

    def wait(number: int) -> None:
        begun.append(number)
        go.wait(5)

    with closing(in_threads(wait, range(50), workers=2, depth=20)) as running:
        next(running)
        go.set()
    assert len(begun) < 50
    time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitrail")]
