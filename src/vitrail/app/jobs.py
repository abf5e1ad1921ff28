"""Long jobs: reported while they run, stopped on request, and interrupted for short requests."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import VitrailError

__all__ = ["MOST_LONG", "BusyError", "ModelQueue", "Report", "Stopped", "follow"]

Result = TypeVar("Result")
EVERY = 0.25  # seconds from one look at the worker to the next
MOST_LONG = 12  # pieces of long work that wait or run, of all visitors together


class Stopped(Exception):  # noqa: N818  (nothing went wrong)
    """Ends a job because the visitor stopped it or has left."""


@dataclass(frozen=True)
class Report:
    """Holds the progress of a job."""

    doing: str
    done: int
    total: int


class BusyError(VitrailError):
    """Refuses a job because too many are waiting."""


class ModelQueue:
    """Gives short requests priority over long jobs, which run one at a time in the order of their arrival.

    At most `most` long jobs wait or run, and `each` of one person, so that nobody can fill the queue.

    >>> turn = ModelQueue()
    >>> with turn.quick():
    ...     pass
    >>> with turn.long("ada") as breathe:
    ...     breathe()
    """

    def __init__(self, *, most: int = MOST_LONG, each: int = 2) -> None:
        self.most, self.each = most, each
        self._free = threading.Condition()
        self._busy = False
        self._waiting = 0
        self._line: list[_Place] = []  # who waits with long work or does it, the first in front

    @contextmanager
    def quick(self) -> Iterator[None]:
        """Holds the model for a short request."""
        with self._free:
            self._waiting += 1
            try:
                self._free.wait_for(lambda: not self._busy)
            finally:
                self._waiting -= 1
            self._busy = True
        try:
            yield
        finally:
            self._give_back()

    @contextmanager
    def long(self, person: str = "", waiting: Callable[[int], None] = lambda _: None) -> Iterator[Callable[[], None]]:
        """Holds the model for a long job; the yielded function, called now and then, lets short requests pass.

        While others are ahead, `waiting` is called with their number; it ends the wait by raising.

        Raises:
            BusyError: where the queue is full, or the person has too many jobs in it.
        """
        place = _Place(person)
        with self._free:
            if sum(other.person == person for other in self._line) >= self.each:
                raise BusyError(
                    f"{self.each} drawings of yours are under way or wait already: stop one, or wait until it is done"
                )
            if len(self._line) >= self.most:
                raise BusyError(f"{self.most} drawings of other visitors wait already: try again in a minute")
            self._line.append(place)
        try:
            while ahead := self._ahead(place):
                waiting(ahead)
                with self._free:
                    self._free.wait_for(lambda: self._line[0] is place, timeout=EVERY)
            self._take_after_others()
            try:
                yield self._breathe
            finally:
                self._give_back()
        finally:
            with self._free:
                self._line.remove(place)
                self._free.notify_all()

    def _ahead(self, place: "_Place") -> int:
        with self._free:
            return self._line.index(place)

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


@dataclass(eq=False)
class _Place:
    """Holds a place in the queue for one person."""

    person: str


def follow(
    work: Callable[[Callable[[str, int, int], None]], Result], stop: threading.Event
) -> Generator[Report, None, Result]:
    """Runs `work` in a thread of its own, yields its reports as they come, and returns its result.

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
