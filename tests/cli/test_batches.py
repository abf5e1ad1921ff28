"""Batches in which the bad take nobody down with them."""

import threading
from collections.abc import Iterable

import pytest

from vitrail.cli.image_run import in_batches
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


class SideBySide(Recorder):
    """A model that goes on only when two batches are with it, and remembers the threads that asked."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        self.together = threading.Barrier(2, timeout=10)
        self.threads: list[tuple[int, int]] = []
        self.failed_in: set[int] = set()

    def run(self, keys: list[str], numbers: list[int]) -> Iterable[int]:
        self.threads.append((numbers[0], threading.get_ident()))
        if self.first not in numbers and len(numbers) > 1:
            self.together.wait()
        return super().run(keys, numbers)

    def fail(self, key: str, error: Exception) -> None:
        super().fail(key, error)
        self.failed_in.add(threading.get_ident())


def test_batches_after_the_first_go_side_by_side_and_come_in_order() -> None:
    model = SideBySide(first=1)
    here = threading.get_ident()
    asked: list[int] = []

    def parallel(loaded: int) -> int:
        asked.append(loaded)
        return 2

    keys = ["1", "2", "3", "-4", "5", "x", "6", "7", "8", "9", "10"]  # "x" is never loaded, "-4" fails with its batch
    found = list(in_batches(keys, model.load, model.run, size=2, failed=model.fail, parallel=parallel))
    assert found == [(key, int(key) ** 2) for key in keys if key not in ("-4", "x")]
    assert asked == [3]
    assert set(model.failed) == {"-4", "x"}
    assert model.failed_in == {here}
    assert [thread for number, thread in model.threads if number == 1] == [here]
    others = {thread for number, thread in model.threads if number != 1}
    assert len(others) == 2
    assert here not in others


def test_one_batch_needs_no_threads() -> None:
    recorder = Recorder()

    def parallel(loaded: int) -> int:
        raise AssertionError(f"asked for {loaded}")

    found = list(in_batches(["1", "2"], recorder.load, recorder.run, size=2, failed=recorder.fail, parallel=parallel))
    assert found == [("1", 1), ("2", 4)]


def test_a_question_at_fault_ends_all_passes() -> None:
    recorder = Recorder(TargetError("no such class"))
    keys = ["1", "-2", *map(str, range(3, 50))]
    with pytest.raises(TargetError, match="no such class"):
        list(in_batches(keys, recorder.load, recorder.run, size=1, failed=recorder.fail, parallel=lambda _: 3))
    assert len(recorder.calls) < 10
    assert not recorder.failed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitrail")]
