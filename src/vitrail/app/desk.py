"""Each visitor's desk: the picture that lies on it and the last answers. Bounded, in memory only, and forgotten."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .pictures import Picture, Seen

__all__ = ["Desk", "Desks", "person_of"]


@dataclass(eq=False)
class Desk:
    """What one visitor has before them.

    `seen` is what each model saw of the picture, `answers` what can be downloaded, by view, and `stop` is set to end
    the work that is under way, on the view `working`.
    """

    picture: Picture | None = None
    guide: Picture | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    stop: threading.Event | None = None
    working: str | None = None
    used: float = 0.0
    visitor: str = ""

    def put(self, picture: Picture) -> None:
        """Lay another picture on the desk; what belonged to the last one goes."""
        self.picture = picture
        self.seen.clear()
        self.answers.clear()

    @property
    def size(self) -> int:
        """Bytes of the pictures on it, as they came and as models saw them."""
        came = sum(len(one.content) for one in (self.picture, self.guide) if one is not None)
        return came + sum(one.tensor.nbytes + one.shown.nbytes for one in list(self.seen.values()))


class Desks:
    """The desks by visitor; the one that was longest unused is cleared where they are too many or too full.

    A visitor is a person at one tab, "person.tab". One person has at most `each` desks and a quarter of the bytes, and
    clears with more of them only their own.

    >>> desks = Desks(most=2)
    >>> for visitor in "abc":
    ...     _ = desks.of(visitor)
    >>> len(desks), "a" in desks
    (2, False)
    """

    def __init__(
        self,
        *,
        most: int = 200,
        each: int = 12,
        most_bytes: int = 400_000_000,
        minutes: float | int = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most, self.each, self.most_bytes = most, each, most_bytes
        self.seconds, self.clock = 60 * minutes, clock
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, visitor: str) -> Desk:
        """The visitor's desk, an empty one for a new visitor."""
        with self._lock:
            desk = self._desks.setdefault(visitor, Desk(visitor=visitor))
            self._desks.move_to_end(visitor)
            desk.used = self.clock()
            self._tidy()
            self._share(person_of(visitor))
            return desk

    def leave(self, visitor: str) -> None:
        """Clear the desk of a visitor who has gone, and end what was being done for them."""
        with self._lock:
            self._clear(visitor)

    def tidy(self) -> None:
        """Clear the desks that nobody has used for long."""
        with self._lock:
            self._tidy()

    def _tidy(self) -> None:
        # The newest is never cleared: somebody stands before it.
        while len(self._desks) > 1:
            oldest = next(iter(self._desks))
            stale = self.clock() - self._desks[oldest].used > self.seconds
            full = sum(desk.size for desk in self._desks.values()) > self.most_bytes
            if not (stale or full or len(self._desks) > self.most):
                return
            self._clear(oldest)

    def _share(self, person: str) -> None:
        own = [visitor for visitor in self._desks if person_of(visitor) == person]
        while len(own) > 1:
            full = sum(self._desks[visitor].size for visitor in own) > self.most_bytes / 4
            if not (full or len(own) > self.each):
                return
            self._clear(own.pop(0))

    def _clear(self, visitor: str) -> None:
        desk = self._desks.pop(visitor, None)
        if desk is not None and desk.stop is not None:
            desk.stop.set()

    def __len__(self) -> int:
        return len(self._desks)

    def __contains__(self, visitor: str) -> bool:
        return visitor in self._desks


def person_of(visitor: str) -> str:
    """Whose tab it is; a visitor without a tab is a person.

    >>> person_of("3f2a.tab1"), person_of("ada")
    ('3f2a', 'ada')
    """
    return visitor.partition(".")[0]
