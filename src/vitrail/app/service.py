"""What a visitor can do on the page, one method each, told apart by who asks; knows nothing of the web."""

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any
from urllib.parse import parse_qsl

from ..errors import ImageError, VitrailError
from .components import draw_classes
from .exports import Answer, Told, as_command, as_python
from .fragments import nothing, problem, progress
from .jobs import Report, Stopped, Turn, follow
from .pictures import EXAMPLES, Limits, Picture, example_picture, look, offered, uploaded
from .question import LONG, OPEN, Asked, Question
from .session import Desk, Desks, Shelf, person_of
from .views import LONG_VIEWS, QUICK_VIEWS

__all__ = ["WAITING", "Service", "Shown"]

log = logging.getLogger("vitrail.app")

TYPES = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "webp": "image/webp",
    "safetensors": "application/octet-stream",
}

WAITING = {
    "methods": "Every method's map for the same question, side by side, with the time that it took.",
    "guide": "The picture beside one of another class: what argues against moves there, and the map gets clearer.",
    "transfer": "What if the model looked elsewhere? Its attention is moved, step by step, until the class is lost.",
    "rewrite": "As small a change as it takes until the model names another class, as a file that proves it.",
}
DRAW = {  # what is pressed to have them drawn
    "methods": "Compare methods",
    "guide": "Explain beside a guide",
    "transfer": "Move attention",
    "rewrite": "Rewrite the picture",
}
NEW: dict[str, None] = dict.fromkeys(OPEN)  # for another picture
EMPTY = nothing("Choose a picture, or take one of the examples.")
SORRY = "Something went wrong here, and it was not your doing. Whoever runs this page finds the reason in its log."


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What changes on the page; None leaves a part as it is. `views` is HTML by view.

    Without a question only the views change: a drawing goes on while the visitor may look at something else.

    `names` are the classes of the model by index, and `examples` the pictures that suit it.
    """

    question: Question | None
    status: str = ""
    classes: str | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    recipes: tuple[str, str] | None = None
    files: tuple[str, ...] | None = None
    target: int | None = None
    names: tuple[str, ...] | None = None
    examples: tuple[str, ...] | None = None


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

    def arrive(self, visitor: str, query: str, *, back: bool = False) -> Shown:
        """Restore a link, or show a new visitor the first example; with `back` the page has its drawings still."""
        question = read(query)
        desk = self.desks.of(visitor)
        if not query:
            return self.example(visitor, query, offered(self.shelf.model(""))[0])
        if question.example:
            return self._with_picture(desk, question, lambda: example_picture(question.example), turned=back)
        found = self.desks.find(visitor, question.picture) if question.picture else desk.picture
        if found is not None:
            return self._with_picture(desk, question, lambda: found, turned=back)
        said = (
            "This link was made with an uploaded picture, and uploads are not kept for long. Put the picture in again: "
            "everything else is as it was."
        )
        hint = f'<div class="vt-hint" role="status">{said}</div>'
        desk.picture = None
        return Shown(question=question, status=hint, classes="", views={question.view: EMPTY}, names=())

    def example(self, visitor: str, query: str, key: str) -> Shown:
        """Lay an example on the visitor's desk and explain it; of two things on it the one against the other."""
        question = read(query).changed(**NEW, example=key, picture="")
        desk = self.desks.of(visitor)
        if key in EXAMPLES and len(EXAMPLES[key].objects) == 2:
            try:
                with self.turn.quick():
                    desk.put(example_picture(key))
                    question = self._both(desk, question)
            except Exception as error:
                return Shown(question=question, status=excuse(error))
        return self._with_picture(desk, question, lambda: example_picture(key))

    def upload(self, visitor: str, query: str, name: str, content: str) -> Shown:
        """Lay an uploaded picture (base64) on the visitor's desk and explain it."""
        desk = self.desks.of(visitor)
        question = read(query)
        try:
            picture = self._uploaded(name, content)
        except Exception as error:
            return Shown(question=question, status=excuse(error))
        if desk.picture is not None:  # else a link is being restored, whose classes are wanted still
            question = question.changed(**NEW)
        kept = {name: getattr(question, name) for name in OPEN}
        question = question.changed(example="", picture=picture.key, **kept)
        return self._with_picture(desk, question, lambda: picture)

    def guide(self, visitor: str, query: str, name: str, content: str) -> Shown:
        """Keep a picture to be laid beside the visitor's own."""
        question, desk = read(query), self.desks.of(visitor)
        try:
            desk.guide = self._uploaded(name, content)
        except Exception as error:
            return Shown(question=question, status=excuse(error))
        desk.answers.pop("guide", None)
        said = nothing(f"The guide will be your picture {escape(desk.guide.name)}. Now press <b>{DRAW['guide']}</b>.")
        return Shown(question=question, views={"guide": said})

    def choose(self, visitor: str, query: str, index: int | None) -> Shown:
        """A click on a class, or, with None, on what swaps the two."""
        desk, question = self.desks.of(visitor), read(query)
        try:
            with self.turn.quick():
                explained = self._asked(desk, question).target
        except Exception as error:
            return Shown(question=question, status=excuse(error))
        return self._show(desk, question.swapped(explained) if index is None else question.choose(index, explained))

    def change(self, visitor: str, query: str, changes: Mapping[str, Any]) -> Shown:
        """Any other change of the question: a method, a patch, a view …"""
        desk, question = self.desks.of(visitor), read(query)
        changed = question.heard(changes)
        if changed.model != question.model and question.example:
            return self._another_model(visitor, changed)
        return self._show(desk, changed, turned=set(changes) <= {"view"})

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

        desk.working, desk.latest = view, question
        yield Shown(question=question, views={view: progress(Report("starting", 0, 0))})
        try:
            reports = follow(work, stop)
            while True:
                try:
                    report = next(reports)
                except StopIteration as end:
                    asked, answer = end.value
                    break
                yield Shown(question=None, views={view: progress(report)})
        except Stopped:
            yield Shown(question=None, views={view: nothing(f"Stopped. Press <b>{DRAW[view]}</b> to begin again.")})
        except Exception as error:
            yield Shown(question=None, views={view: excuse(error)})
        else:
            latest = desk.latest or question
            if replace(latest, view=view).essence() != question.essence():
                return  # another question has been asked meanwhile, and the view already says so
            desk.answers[view] = replace(answer, html="", essence=question.essence())  # the page has it
            shown = self._shown(asked, {view: answer.html}, desk.answers[view])
            yield shown if latest.view == view else Shown(question=None, views=shown.views)
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
                str(error).replace("the image bytes", "the file").removesuffix(", or raise max_pixels if you trust it")
            )
            message = message.partition("; it begins with ")[0]  # raw bytes say nothing to a visitor
            raise type(error)(f"This picture cannot be used: {message}.") from error

    def _with_picture(
        self, desk: Desk, question: Question, picture: Callable[[], Picture], *, turned: bool = False
    ) -> Shown:
        try:
            desk.put(picture())
        except Exception as error:
            return Shown(question=question, status=excuse(error))
        return self._show(desk, question, turned=turned)

    def _both(self, desk: Desk, question: Question) -> Question:
        """The question of an example with two things: what the model calls the one, against what it calls the other."""
        model = self.shelf.model(question.model)
        objects = EXAMPLES[question.example].objects
        names = {model.class_name(index): index for index in range(len(model.class_names or ()))}
        if not EXAMPLES[question.example].known(names):
            return question
        logits = self._asked(desk, question).logits
        first, second = (
            max((names[name] for name in words if name in names), key=lambda index: float(logits[index]))
            for words in objects
        )
        return question.changed(target=first, against=second)

    def _another_model(self, visitor: str, question: Question) -> Shown:
        """The example again if it suits the model, else the first that does."""
        try:
            suited = offered(self.shelf.model(question.model))
        except Exception as error:
            return Shown(question=question, status=excuse(error))
        key = question.example if question.example in suited else suited[0]
        return self.example(visitor, question.query(), key)

    def _asked(self, desk: Desk, question: Question) -> Asked:
        wanted = None
        if question.example in EXAMPLES:  # the desk was cleared, or another picture lies on it in this tab
            wanted = example_picture(question.example)
        elif question.picture:
            wanted = desk.find(question.picture)
            if wanted is None:
                raise ImageError("The picture of this question is not kept any more: choose it again.")
        if wanted is not None:
            desk.put(wanted)
        if desk.picture is None:
            raise ImageError("Put a picture in first, or take one of the examples.")
        model = self.shelf.model(question.model)
        if model.name not in desk.seen:
            desk.seen[model.name] = look(model, desk.picture)
        return Asked(model, desk.picture, desk.seen[model.name], question)

    def _show(self, desk: Desk, question: Question, turned: bool = False) -> Shown:
        """The view that the question names, where it is quick; else an invitation to have it drawn."""
        view, desk.latest = question.view, question
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
        view, drawn = asked.question.view, desk.answers.get(asked.question.view)
        if turned and drawn is not None and drawn.essence == asked.question.essence():  # only looked at again
            return self._shown(asked, {}, drawn)
        if turned and view == desk.working:
            return self._shown(asked, {}, None)
        if view == desk.working and desk.stop is not None:
            desk.stop.set()  # it answers another question
        desk.answers.pop(view, None)
        invitation = nothing(f"{WAITING[view]}<br>Press <b>{DRAW[view]}</b> above.")
        return self._shown(asked, {view: invitation}, None)

    def _shown(self, asked: Asked, views: Mapping[str, str], answer: Answer | None) -> Shown:
        question, model = asked.question, asked.model
        checkpoint = self.shelf.checkpoints.get(question.model or self.shelf.first)
        told = Told(
            question=question,
            model=model,
            picture=asked.picture,
            target=asked.target,
            rival=asked.rival if len(asked.logits) > 1 else asked.target,  # of one number there is none
            checkpoint=None if checkpoint is None else str(checkpoint),
            facts={} if answer is None else answer.facts,
        )
        return Shown(
            question=question,
            classes=draw_classes(asked),
            views=views,
            recipes=(as_python(told), as_command(told)),
            files=() if answer is None else tuple(answer.files),
            target=asked.target,
            names=tuple(model.class_name(index) for index in range(len(asked.logits))),
            examples=offered(model),
        )


def read(query: str) -> Question:
    """The question in a link."""
    return Question.from_query(dict(parse_qsl(query.removeprefix("?"))))


def excuse(error: Exception) -> str:
    """What a visitor reads of an error; what only its operator can mend goes to the log."""
    if isinstance(error, VitrailError):
        return problem(str(error))
    log.error("a question could not be answered", exc_info=error)
    return problem(SORRY)
