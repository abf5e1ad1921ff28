"""Work that takes long: reported while it goes on, stopped when asked, and never in the way of what is quick."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Report", "Stopped", "Turn", "follow"]

Result = TypeVar("Result")
EVERY = 0.25  # seconds from one look at the worker to the next


class Stopped(Exception):  # noqa: N818  (nothing went wrong)
    """The visitor asked to stop, or has gone."""


@dataclass(frozen=True)
class Report:
    """How far the work has come."""

    doing: str
    done: int
    total: int


class Turn:
    """One at a time at the model, and who works long lets those pass who only want a moment.

    >>> turn = Turn()
    >>> with turn.quick():
    ...     pass
    >>> with turn.long() as breathe:
    ...     breathe()
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._busy = False
        self._waiting = 0

    @contextmanager
    def quick(self) -> Iterator[None]:
        """Take the model for a moment."""
        with self._free:
            self._waiting += 1
            self._free.wait_for(lambda: not self._busy)
            self._waiting -= 1
            self._busy = True
        try:
            yield
        finally:
            self._give_back()

    @contextmanager
    def long(self) -> Iterator[Callable[[], None]]:
        """Take the model for long; call what is given now and then, to let others pass."""
        self._take_after_others()
        try:
            yield self._breathe
        finally:
            self._give_back()

    def _breathe(self) -> None:
        if self._waiting:
            self._give_back()
            self._take_after_others()

    def _take_after_others(self) -> None:
        with self._free:
            self._free.wait_for(lambda: not self._busy and not self._waiting)
            self._busy = True

    def _give_back(self) -> None:
        with self._free:
            self._busy = False
            self._free.notify_all()


def follow(
    work: Callable[[Callable[[str, int, int], None]], Result], stop: threading.Event
) -> Generator[Report, None, Result]:
    """Do `work` in a thread of its own, give its reports as they come, and return what it returns.

    `work` is called with a function (doing, done, total), which raises `Stopped` once `stop` is set: so the work ends
    at its next report. What it raises is raised here. When nobody asks for reports any more, `stop` is set as well.
    """
    reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
    ended = _Ended[Result]()

    def report(doing: str, done: int, total: int) -> None:
        if stop.is_set():
            raise Stopped
        reports.put(Report(doing, done, total))

    def run() -> None:
        try:
            ended.result = work(report)
        except BaseException as error:
            ended.error = error

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(EVERY)
            latest = None
            while not reports.empty():
                latest = reports.get()
            if latest is not None:
                yield latest
            if stop.is_set() and worker.is_alive():
                yield Report("stopping", 0, 0)
    finally:
        if worker.is_alive():
            stop.set()
    if ended.error is not None:
        raise ended.error
    assert ended.result is not None
    return ended.result


@dataclass
class _Ended(Generic[Result]):
    result: Result | None = None
    error: BaseException | None = None
