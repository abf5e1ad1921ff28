"""Batches in which the bad take nobody down with them."""

from collections.abc import Iterable

import pytest

from vitrail.cli.batches import in_batches
from vitrail.errors import NoSignalError, TargetError


class Recorder:
    """A model that fails on negative numbers, and remembers what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[list[int]] = []
        self.error = error or NoSignalError("nothing moves it")
        self.failed: dict[str, str] = {}

    def load(self, key: str) -> int:
        return int(key)

    def run(self, keys: list[str], numbers: list[int]) -> Iterable[int]:
        self.calls.append(numbers)
        if min(numbers) < 0:
            raise self.error
        return [number**2 for number in numbers]

    def fail(self, key: str, error: Exception) -> None:
        self.failed[key] = str(error)

    def all(self, keys: list[str], size: int) -> list[tuple[str, int]]:
        return list(in_batches(keys, self.load, self.run, size=size, failed=self.fail))


def test_batches_are_full_and_in_order() -> None:
    recorder = Recorder()
    assert recorder.all(list("12345"), 2) == [("1", 1), ("2", 4), ("3", 9), ("4", 16), ("5", 25)]
    assert recorder.calls == [[1, 2], [3, 4], [5]]
    assert not recorder.failed


def test_only_the_guilty_fail() -> None:
    recorder = Recorder()
    assert recorder.all(["1", "-2", "x", "3", "4"], 3) == [("1", 1), ("3", 9), ("4", 16)]
    assert recorder.calls == [[1, -2, 3], [1], [-2], [3], [4]]
    assert set(recorder.failed) == {"-2", "x"}


def test_all_may_fail() -> None:
    recorder = Recorder(RuntimeError("out of memory"))
    assert recorder.all(["-1", "-2"], 8) == []
    assert recorder.failed == {"-1": "out of memory", "-2": "out of memory"}


def test_a_question_at_fault_is_not_asked_again() -> None:
    recorder = Recorder(TargetError("no such class"))
    with pytest.raises(TargetError):
        recorder.all(["-1", "2"], 1)
    assert recorder.calls == [[-1]]
