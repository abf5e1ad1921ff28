"""What the page keeps in memory: the models, and each visitor's session with their images and last answers."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import UnknownModelError
from .pictures import Picture, Seen
from .question import LONGEST, Question

if TYPE_CHECKING:
    from ..generation import VisionLanguageModel

__all__ = ["BUILT_IN", "CAPTIONER", "ModelCache", "Session", "Sessions", "person_of", "vlms_of"]

Model = TypeVar("Model")

BUILT_IN = ("bestiary", "bestiary/label-errors")
CAPTIONER = "bestiary/captioner"
EARLIER = 4  # previous images that a session keeps
AWAY = 600  # seconds for which the session of a visitor who has left is kept: loading the page again is leaving it


@dataclass(eq=False)
class Session:
    """Holds the image and the last results of one visitor.

    `earlier` are previous images, so that Back finds them. `seen` is the image as each model saw it, `maps` what was
    drawn last (see `ViewContext`), `answers` what can be downloaded, by view, and `stop` is set to end the job that is
    running, on the view `working`. `latest` is the latest question.
    """

    picture: Picture | None = None
    earlier: list[Picture] = field(default_factory=list)
    guide: Picture | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    maps: dict[Any, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    stop: threading.Event | None = None
    working: str | None = None
    latest: Question | None = None
    used: float = 0.0
    left: bool = False

    def put(self, picture: Picture) -> None:
        """Replaces the image; what belonged to the last one is dropped."""
        if self.picture is not None and self.picture.key == picture.key:
            return
        if self.picture is not None:
            others = [one for one in self.earlier if one.key != picture.key]
            self.earlier = [*others[1 - EARLIER :], self.picture]
        self.picture = picture
        self.seen.clear()
        self.maps.clear()
        self.answers.clear()

    def find(self, key: str) -> Picture | None:
        """Returns the current or a previous image by its key, or None."""
        here = [self.picture] if self.picture is not None else []
        return next((one for one in here + self.earlier if one.key == key), None)

    @property
    def size(self) -> int:
        """Bytes of the images, as files and as models saw them, and of what is kept to be saved."""
        came = sum(len(one.content) for one in (self.picture, self.guide, *self.earlier) if one is not None)
        came += sum(one.held for one in list(self.answers.values()))
        return came + sum(one.tensor.nbytes + one.shown.nbytes for one in list(self.seen.values()))


class Sessions:
    """Keeps the sessions by visitor; the one unused for longest is cleared where there are too many or too large ones.

    A visitor is a person at one tab, "person.tab". One person has at most `each` sessions and a quarter of the bytes;
    beyond that the person's own are cleared.

    >>> sessions = Sessions(most=2)
    >>> for visitor in "abc":
    ...     _ = sessions.of(visitor)
    >>> len(sessions), "a" in sessions
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
        self._desks: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, visitor: str) -> Session:
        """Returns the visitor's session, an empty one for a new visitor."""
        with self._lock:
            session = self._desks.setdefault(visitor, Session())
            self._desks.move_to_end(visitor)
            session.used, session.left = self.clock(), False
            self._tidy()
            self._share(person_of(visitor))
            return session

    def find(self, visitor: str, key: str) -> Picture | None:
        """Returns an image of the visitor by its key, from any tab of theirs."""
        with self._lock:
            own = [session for other, session in self._desks.items() if person_of(other) == person_of(visitor)]
            return next((found for session in reversed(own) if (found := session.find(key)) is not None), None)

    def leave(self, visitor: str) -> None:
        """Stops the job of a visitor who has left; their images are kept for a few minutes more."""
        with self._lock:
            session = self._desks.get(visitor)
            if session is not None:
                session.left, session.used = True, self.clock()
                session.answers.clear()
                session.seen.clear()
                session.maps.clear()
                if session.stop is not None:
                    session.stop.set()

    def tidy(self) -> None:
        """Clears the sessions that have been unused for long."""
        with self._lock:
            self._tidy()

    def _tidy(self) -> None:
        now = self.clock()
        for visitor in [one for one, session in self._desks.items() if session.left and now - session.used > AWAY]:
            self._clear(visitor)
        # The newest is never cleared: somebody stands before it.
        while len(self._desks) > 1:
            oldest = next(iter(self._desks))
            stale = self.clock() - self._desks[oldest].used > self.seconds
            full = sum(session.size for session in self._desks.values()) > self.most_bytes
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
        session = self._desks.pop(visitor, None)
        if session is not None and session.stop is not None:
            session.stop.set()

    def __len__(self) -> int:
        return len(self._desks)

    def __contains__(self, visitor: str) -> bool:
        return visitor in self._desks


def person_of(visitor: str) -> str:
    """Returns the person of a visitor, whose tab may be missing.

    >>> person_of("3f2a.tab1"), person_of("ada")
    ('3f2a', 'ada')
    """
    return visitor.partition(".")[0]


class ModelCache(Generic[Model]):
    """Loads models by name: `first` at once, those in `allowed` and the built-in ones on demand.

    `load` is called with (name, checkpoint). A visitor can name no other model: no file, no address. Without `at_once`
    the first is loaded on demand, too. `options` are what the models are loaded with, for code to copy.

    >>> from vitrail.models import load
    >>> models = ModelCache("bestiary", load=lambda name, checkpoint: load(name))
    >>> models.model("bestiary").name, models.names
    ('bestiary', ('bestiary', 'bestiary/label-errors'))
    """

    def __init__(
        self,
        first: str,
        *,
        load: Callable[[str, Path | None], Model],
        checkpoint: Path | None = None,
        allowed: tuple[str, ...] = (),
        built_in: tuple[str, ...] = BUILT_IN,
        at_once: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.names = tuple(dict.fromkeys((first, *built_in, *allowed)))
        if long := [name for name in self.names if len(name) > LONGEST]:
            raise UnknownModelError(
                f"{long[0]} has more than {LONGEST} letters, which no link holds: give a shorter path"
            )
        self.checkpoints: Mapping[str, Path | None] = {first: checkpoint}
        self.options: Mapping[str, str] = {} if options is None else options
        self._load = load
        self._loading = {name: threading.Lock() for name in self.names}
        self._models: dict[str, Model] = {}
        if at_once:
            self.model(first)

    @property
    def first(self) -> str:
        """Returns the name of the model that a new visitor gets."""
        return self.names[0]

    def model(self, name: str) -> Model:
        """Returns the model of that name, "" for the first.

        Raises:
            UnknownModelError: for a name that the operator has not allowed.
            VitrailError: where an allowed model cannot be loaded.
        """
        name = name or self.first
        if name not in self.names:
            raise UnknownModelError(f"this page offers {', '.join(self.names)}; whoever runs it can offer more")
        with self._loading[name]:  # who wants another model does not wait for this one's download
            if name not in self._models:
                self._models[name] = self._load(name, self.checkpoints.get(name))
            return self._models[name]


def vlms_of(
    names: Sequence[str] = (), *, device: str = "cpu", dtype: str = "float32"
) -> ModelCache["VisionLanguageModel"]:
    """Returns the vision-language models of a page: those named and the bestiary's captioner, loaded on demand."""

    def load(name: str, _: object) -> "VisionLanguageModel":
        import torch

        from ..generation import load_vlm

        return load_vlm(name, device=device, dtype=getattr(torch, dtype))

    options = {"device": device, "dtype": dtype}
    differing = {name: value for name, value in options.items() if value not in ("cpu", "float32")}
    first, *others = (*names, CAPTIONER)
    return ModelCache(first, load=load, allowed=tuple(others), built_in=(), at_once=False, options=differing)
