"""What a visitor can do on the page, one method each, told apart by who asks; knows nothing of the web."""

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any
from urllib.parse import parse_qsl

from ..errors import ImageError, VitrailError
from .answer import Answer
from .desk import Desk, Desks, person_of
from .fragments import nothing, problem, progress
from .pictures import Limits, Picture, example_picture, look, uploaded
from .question import LONG, OPEN, Question
from .recipes import as_command, as_python
from .shelf import Shelf
from .views import LONG_VIEWS, QUICK_VIEWS
from .views.asking import Asked
from .views.classes import draw_classes
from .work import Stopped, Turn, follow

__all__ = ["FIRST", "WAITING", "Service", "Shown"]

FIRST = "pair"  # the example that a new visitor sees

log = logging.getLogger("vitrail.app")

TYPES = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "webp": "image/webp",
    "safetensors": "application/octet-stream",
}

WAITING = {
    "methods": "Every method's answer to the same question, side by side, with the time that it took.",
    "guide": "The picture beside one of another class: what argues against moves there, and the map gets clearer.",
    "transfer": "What if the model looked elsewhere? Its attention is moved, step by step, until the class is lost.",
    "rewrite": "As small a change as it takes until the model names another class, as a file that proves it.",
}
NEW: dict[str, None] = dict.fromkeys(OPEN)  # for another picture
EMPTY = nothing("Put a picture in, or take one of the examples.")
SORRY = "Something went wrong here, and it was not your doing. Whoever runs this page finds the reason in its log."


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What changes on the page; None leaves a part as it is. `views` is HTML by view."""

    question: Question
    status: str = ""
    classes: str | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    recipes: tuple[str, str] | None = None
    files: tuple[str, ...] | None = None
    target: int | None = None
    names: tuple[tuple[str, int], ...] | None = None


class Service:
    """One page's models, visitors and limits.

    Every method takes the visitor and the query of the link that the visitor is at, and gives what changes. Errors that
    the visitor can mend are told in `status`; any other goes to the log, and the visitor reads that it did.
    """

    def __init__(self, shelf: Shelf, limits: Limits | None = None, desks: Desks | None = None) -> None:
        self.shelf = shelf
        self.limits = Limits() if limits is None else limits
        self.desks = Desks() if desks is None else desks  # an empty one is false
        self.turn = Turn()
        self.present: Callable[[str], bool] = lambda _: True  # whether anybody waits for a visitor's answers

    # -- what comes in -----------------------------------------------------------------------------------------------

    def arrive(self, visitor: str, query: str) -> Shown:
        """Restore a link, or show a new visitor the first example."""
        question = read(query)
        if not query:
            question = question.changed(example=FIRST)
        desk = self.desks.of(visitor)
        if question.example:
            return self._with_picture(desk, question, lambda: example_picture(question.example))
        if desk.picture is not None:
            return self._show(desk, question)
        said = (
            "This link was made with an uploaded picture, and uploads are not kept. Put the picture in again: "
            "everything else is as it was."
        )
        hint = f'<div class="vt-hint" role="status">{said}</div>'
        return Shown(question=question, status=hint, classes="", views={question.view: EMPTY}, names=())

    def example(self, visitor: str, query: str, key: str) -> Shown:
        """Lay an example on the visitor's desk and explain it."""
        question = read(query).changed(example=key, **NEW)
        return self._with_picture(self.desks.of(visitor), question, lambda: example_picture(key))

    def upload(self, visitor: str, query: str, name: str, content: str) -> Shown:
        """Lay an uploaded picture (base64) on the visitor's desk and explain it."""
        desk = self.desks.of(visitor)
        question = read(query)
        if desk.picture is not None:  # else a link is being restored, whose classes are wanted still
            question = question.changed(**NEW)
        question = question.changed(example="", target=question.target, against=question.against)
        return self._with_picture(desk, question, lambda: self._uploaded(name, content))

    def guide(self, visitor: str, query: str, name: str, content: str) -> Shown:
        """Keep a picture to be laid beside the visitor's own."""
        question = read(query)
        try:
            self.desks.of(visitor).guide = self._uploaded(name, content)
        except VitrailError as error:
            return Shown(question=question, status=problem(str(error)))
        said = nothing(f"The guide will be your picture {escape(name)}. Now press <b>Guide</b>.")
        return Shown(question=question, views={"guide": said})

    def choose(self, visitor: str, query: str, index: int) -> Shown:
        """A click on a class."""
        desk, question = self.desks.of(visitor), read(query)
        return self._show(desk, question.choose(index))

    def change(self, visitor: str, query: str, changes: Mapping[str, Any]) -> Shown:
        """Any other change of the question: a method, a patch, a view …"""
        desk, question = self.desks.of(visitor), read(query)
        return self._show(desk, question.heard(changes), turned=set(changes) <= {"view"})

    # -- what takes long -----------------------------------------------------------------------------------------------

    def draw(self, visitor: str, query: str, changes: Mapping[str, Any]) -> Generator[Shown, None, None]:
        """Draw one of the long views, with its progress."""
        question = read(query).heard(changes)
        view, desk = question.view, self.desks.of(visitor)
        if view not in LONG_VIEWS:
            yield self._show(desk, question)
            return
        if desk.stop is not None:
            desk.stop.set()
        stop = desk.stop = threading.Event()

        def work(report: Callable[[str, int, int], None]) -> tuple[Asked, Answer]:
            def tell(doing: str, done: int, total: int) -> None:
                if not self.present(visitor):
                    stop.set()
                report(doing, done, total)

            with self.turn.long(person_of(visitor), lambda ahead: tell(f"waiting, {ahead} ahead", 0, 0)) as breathe:

                def tick(doing: str, done: int, total: int) -> None:
                    tell(doing, done, total)
                    breathe()

                asked = self._asked(desk, question)
                tick("starting", 0, 0)
                return asked, LONG_VIEWS[view](asked, desk.guide, tick)

        desk.working = view
        try:
            reports = follow(work, stop)
            while True:
                try:
                    report = next(reports)
                except StopIteration as end:
                    asked, answer = end.value
                    break
                yield Shown(question=question, views={view: progress(report)})
        except Stopped:
            yield Shown(question=question, views={view: nothing("Stopped. What was found so far is gone.")})
        except Exception as error:
            yield Shown(question=question, views={view: excuse(error)})
        else:
            desk.answers[view] = replace(answer, html="")  # the page has it
            yield self._shown(asked, {view: answer.html}, answer)
        finally:
            if desk.stop is stop:
                desk.working = None

    def stop(self, visitor: str) -> None:
        """End what is being done for the visitor."""
        desk = self.desks.of(visitor)
        if desk.stop is not None:
            desk.stop.set()

    # -- what goes out -------------------------------------------------------------------------------------------------

    def download(self, visitor: str, query: str, kind: str) -> tuple[str, str, bytes]:
        """A file of the view: its name, its type, its bytes.

        Raises:
            ImageError: where there is no such file, because nothing is drawn, say.
        """
        view, desk = read(query).view, self.desks.of(visitor)
        answer = desk.answers.get(view)
        if answer is None or kind not in answer.files or desk.picture is None:
            raise ImageError("there is nothing to save yet: draw it first")
        stem = desk.picture.name.rpartition(".")[0] or desk.picture.name
        with self.turn.quick():
            return f"{stem}.{answer.name}.{kind}", TYPES[kind], answer.files[kind]()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _uploaded(self, name: str, content: str) -> Picture:
        try:
            return uploaded(name, content, self.limits)
        except ImageError as error:
            message = (
                str(error).replace("the image bytes", "the file").replace(", or raise max_pixels if you trust it", "")
            )
            raise type(error)(f"This picture cannot be used: {message}.") from error

    def _with_picture(self, desk: Desk, question: Question, picture: Callable[[], Picture]) -> Shown:
        try:
            desk.put(picture())
        except Exception as error:
            return Shown(question=question, status=excuse(error))
        return self._show(desk, question)

    def _asked(self, desk: Desk, question: Question) -> Asked:
        if desk.picture is None and question.example:  # the desk was cleared, or the page is older than the server
            desk.put(example_picture(question.example))
        if desk.picture is None:
            raise ImageError("Put a picture in first, or take one of the examples.")
        model = self.shelf.model(question.model)
        if model.name not in desk.seen:
            desk.seen[model.name] = look(model, desk.picture)
        return Asked(model, desk.picture, desk.seen[model.name], question)

    def _show(self, desk: Desk, question: Question, turned: bool = False) -> Shown:
        """The view that the question names, where it is quick; else an invitation to have it drawn."""
        view = question.view
        try:
            self.shelf.model(question.model)  # loaded before the turn is taken: it may come from far
            with self.turn.quick():
                if not self.present(desk.visitor):
                    return Shown(question=question)
                asked = self._asked(desk, question)
                if view in LONG:
                    return self._long(desk, asked, turned)
                answer = QUICK_VIEWS[view](asked)
                desk.answers[view] = replace(answer, html="")
                return self._shown(asked, {view: answer.html}, answer)
        except Exception as error:
            return Shown(question=question, status=excuse(error))

    def _long(self, desk: Desk, asked: Asked, turned: bool) -> Shown:
        view = asked.question.view
        if turned and view in desk.answers:  # only looked at again
            return self._shown(asked, {}, desk.answers[view])
        if turned and view == desk.working:
            return self._shown(asked, {}, None)
        desk.answers.pop(view, None)
        invitation = nothing(f"{WAITING[view]}<br>Press the button above to have it drawn.")
        return self._shown(asked, {view: invitation}, None)

    def _shown(self, asked: Asked, views: Mapping[str, str], answer: Answer | None) -> Shown:
        question, model = asked.question, asked.model
        checkpoint = self.shelf.checkpoints.get(question.model or self.shelf.first)
        given = (question, model, str(checkpoint) if checkpoint else None, asked.picture.name, asked.target)
        names = model.class_names or [None] * len(asked.logits)
        return Shown(
            question=question,
            classes=draw_classes(asked),
            views=views,
            recipes=(as_python(*given), as_command(*given)),
            files=() if answer is None else tuple(answer.files),
            target=asked.target,
            names=tuple((model.class_name(index), index) for index in range(len(names))),
        )


def read(query: str) -> Question:
    """The question in a link."""
    return Question.from_query(dict(parse_qsl(query.removeprefix("?"))))


def excuse(error: Exception) -> str:
    """What a visitor reads of an error; what only its operator can mend goes to the log."""
    if isinstance(error, VitrailError):
        return problem(" ".join(str(error).split()))
    log.error("a question could not be answered", exc_info=error)
    return problem(SORRY)
