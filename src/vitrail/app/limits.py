"""How often and how much at a time each visitor may ask, and which of their tabs still wait for an answer."""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Listeners", "OpenQuestions", "Throttle", "counted"]


class Throttle:
    """Lets each key act `burst` times at once, and after that once in `every` seconds.

    >>> throttle = Throttle(burst=2, every=10, clock=lambda: 0.0)
    >>> [throttle.wait("ada") for _ in range(3)], throttle.wait("eve")
    ([0.0, 0.0, 10.0], 0.0)
    """

    MOST_KEYS = 10_000

    def __init__(self, *, burst: int, every: float | int, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst, self.every, self.clock = burst, every, clock
        self._spent: OrderedDict[str, float] = OrderedDict()  # by key: when everything is regained

    def wait(self, key: str, *, take: bool = True) -> float:
        """Returns the seconds until the key may act again; 0 if it may act now, which with `take` is counted."""
        now = self.clock()
        regained = max(self._spent.get(key, now), now)
        late = regained + self.every - now - self.burst * self.every
        if late > 0:
            return late
        if take:
            self._spent[key] = regained + self.every
            self._spent.move_to_end(key)
            while len(self._spent) > self.MOST_KEYS:
                self._spent.popitem(last=False)
        return 0.0


@contextmanager
def counted(counter: Counter[str], key: str) -> Iterator[None]:
    """Counts the key for the length of the context."""
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


class Listeners:
    """Knows which tabs wait for an answer: those with an open stream, or with one until a moment ago.

    >>> now = [0.0]
    >>> listeners = Listeners(clock=lambda: now[0])
    >>> listeners.touch("a"); now[0] = 9.0
    >>> listeners.present("a")
    False
    """

    PATIENCE = 6.0  # seconds from a question to the stream that fetches its answer, or from one stream to the next
    MOST = 4000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._open: Counter[str] = Counter()
        self._last: OrderedDict[str, float] = OrderedDict()

    def known(self, session: str) -> bool:
        """Returns whether the tab has been active before."""
        return session in self._last

    def touch(self, session: str) -> None:
        """Records that the tab is active now."""
        self._last[session] = self.clock()
        self._last.move_to_end(session)
        while len(self._last) > self.MOST:
            self._last.popitem(last=False)

    @contextmanager
    def listening(self, session: str) -> Iterator[None]:
        """Marks the tab as present while a stream of answers to it is open."""
        self.touch(session)
        try:
            with counted(self._open, session):
                yield
        finally:
            self.touch(session)

    def present(self, session: str) -> bool:
        """Returns whether the tab still waits for answers."""
        return session in self._open or self.clock() - self._last.get(session, -math.inf) < self.PATIENCE


class OpenQuestions:
    """Counts the questions of each visitor that wait for an answer; a tab that has gone does not count."""

    def __init__(self, listeners: Listeners, most: int) -> None:
        self.listeners, self.most = listeners, most
        self._open: dict[str, Counter[str]] = {}  # by visitor and session

    def add(self, visitor: str, session: str) -> bool:
        """Counts one more question; returns False, and counts nothing, where the visitor has `most` already."""
        if len(self._open) > 1000:
            for absent in [one for one, tabs in self._open.items() if not any(map(self.listeners.present, tabs))]:
                del self._open[absent]
        mine = self._open.setdefault(visitor, Counter())
        for other in [other for other in mine if not self.listeners.present(other)]:
            del mine[other]
        if mine.total() >= self.most:
            return False
        mine[session] += 1
        return True

    def answered(self, visitor: str, session: str, count: int | None = None) -> None:
        """Counts `count` answers, or with None all that the session waits for."""
        mine = self._open.get(visitor, Counter())
        mine[session] -= mine[session] if count is None else count
        if mine[session] <= 0:
            del mine[session]
        if not mine:
            self._open.pop(visitor, None)
