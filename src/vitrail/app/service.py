"""The actions of a visitor on the page, one method each, without HTTP."""

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from ..errors import ImageError, VitrailError
from ..methods.context import Progress
from ..models import VisionModel
from .exports import ExportContext, ViewResult, as_command, as_python
from .fragments import CONTROLS, WORD_CONTROLS, nothing, problem, progress
from .jobs import ModelQueue, Report, Stopped, follow
from .page import draw_cells, draw_classes
from .pictures import EXAMPLES, SCENES, Limits, Picture, example_picture, look, offered, uploaded
from .question import DRAW, LONG, OPEN, WAITING, Question, ViewContext
from .session import CAPTIONER, ModelCache, Session, Sessions, person_of, vlms_of
from .views import LONG_VIEWS, QUICK_VIEWS, WordsDrawing

if TYPE_CHECKING:
    from ..generation import VisionLanguageModel

__all__ = ["PageUpdate", "Service"]

log = logging.getLogger("vitrail.app")

TYPES = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "webp": "image/webp",
    "safetensors": "application/octet-stream",
    "html": "text/html; charset=utf-8",
    "json": "application/json",
}

NEW: dict[str, None] = dict.fromkeys(OPEN)  # for another picture
EMPTY = nothing("Choose a picture, or take one of the examples.")
SORRY = "Something went wrong here, and it was not your doing. Whoever runs this page finds the reason in its log."


@dataclass(frozen=True, kw_only=True)
class PageUpdate:
    """Holds what changes on the page; None leaves a part as it is. `views` is HTML by view.

    Without a question only status and views change: a drawing goes on while the visitor may look at something else.

    `cells` is the field of the map's resolution, `names` are the classes of the model by index, and `examples` the
    pictures that suit it. `words` is what is new of the words of an answer, see
    `vitrail.plotting.generation.answer_news`; an empty one takes them all away.
    """

    question: Question | None
    status: str = ""
    classes: str | None = None
    cells: str | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    recipes: tuple[str, str] | None = None
    files: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    examples: tuple[str, ...] | None = None
    words: Mapping[str, Any] | None = None


class Service:
    """Answers the visitors of one page within its limits.

    Every method takes the visitor and the query of the visitor's link, and returns the changes of the page. Errors that
    the visitor can correct are shown in `status`; any other is logged, and the visitor is told so.
    """

    def __init__(
        self,
        models: ModelCache[VisionModel],
        limits: Limits | None = None,
        sessions: Sessions | None = None,
        vlms: ModelCache["VisionLanguageModel"] | None = None,
    ) -> None:
        self.models = models
        self.vlms = vlms_of() if vlms is None else vlms
        self.limits = Limits() if limits is None else limits
        self.sessions = Sessions() if sessions is None else sessions  # an empty one is false
        self.queue = ModelQueue()
        self.report: Progress | None = None  # is told how far a map of several passes is

    # -- what comes in -----------------------------------------------------------------------------------------------

    def arrive(self, visitor: str, query: str, *, back: bool = False) -> PageUpdate:
        """Restores a link, or shows a new visitor the first example; with `back` the page still has its drawings."""
        question = read(query)
        session = self.sessions.of(visitor)
        if not query:
            return self.example(visitor, query, offered(self.models.model(""))[0])
        if question.example:
            return self._with_picture(session, question, lambda: example_picture(question.example), turned=back)
        found = self.sessions.find(visitor, question.picture) if question.picture else session.picture
        if found is not None:
            return self._with_picture(session, question, lambda: found, turned=back)
        said = (
            "This link was made with an uploaded picture, and uploads are not kept for long. Put the picture in again: "
            "everything else is as it was."
        )
        hint = f'<div class="vt-hint" role="status">{said}</div>'
        session.picture = None
        views, suited = {question.view: EMPTY}, offered(self.models.model(""))
        return PageUpdate(question=question, status=hint, classes="", views=views, names=(), examples=suited)

    def example(self, visitor: str, query: str, key: str) -> PageUpdate:
        """Explains an example image; two objects in it are contrasted with each other."""
        question = read(query).changed(**NEW, example=key, picture="")
        session = self.sessions.of(visitor)
        if key in EXAMPLES and len(EXAMPLES[key].objects) == 2:
            try:
                with self.queue.quick():
                    session.put(example_picture(key))
                    question = self._both(session, question)
            except Exception as error:
                return PageUpdate(question=question, status=excuse(error))
        return self._with_picture(session, question, lambda: example_picture(key))

    def upload(self, visitor: str, query: str, name: str, content: bytes | None) -> PageUpdate:
        """Explains an uploaded image; None stands for one that the browser kept back as too large."""
        session = self.sessions.of(visitor)
        question = read(query)
        try:
            picture = self._uploaded(name, content)
        except Exception as error:
            return PageUpdate(question=question, status=excuse(error))
        if session.picture is not None:  # else a link is being restored, whose classes are wanted still
            question = question.changed(**NEW)
        kept = {name: getattr(question, name) for name in OPEN}
        question = question.changed(example="", picture=picture.key, **kept)
        return self._with_picture(session, question, lambda: picture)

    def guide(self, visitor: str, query: str, name: str, content: bytes | None) -> PageUpdate:
        """Keeps an uploaded image as the guide."""
        question, session = read(query), self.sessions.of(visitor)
        try:
            session.guide = self._uploaded(name, content)
        except Exception as error:
            return PageUpdate(question=question, status=excuse(error))
        session.answers.pop("guide", None)
        said = nothing(
            f"The guide will be your picture {escape(session.guide.name)}. Now press <b>{DRAW['guide']}</b>."
        )
        return PageUpdate(question=question, views={"guide": said})

    def choose(self, visitor: str, query: str, index: int | None) -> PageUpdate:
        """Applies a click on a class, or, with None, on the button that swaps the two."""
        session, question = self.sessions.of(visitor), read(query)
        try:
            with self.queue.quick():
                explained = self._context(session, question).target
        except Exception as error:
            return PageUpdate(question=question, status=excuse(error))
        return self._show(session, question.swapped(explained) if index is None else question.choose(index, explained))

    def change(self, visitor: str, query: str, changes: Mapping[str, Any]) -> PageUpdate:
        """Applies any other change of the question: a method, a patch, a view …"""
        session, question = self.sessions.of(visitor), read(query)
        changed = question.heard(changes)
        if changed.model != question.model and question.example:
            return self._another_model(visitor, changed)
        return self._show(session, changed, turned=set(changes) <= {"view"})

    def answer(self, act: Callable[["Service"], PageUpdate]) -> Generator[PageUpdate, None, None]:
        """Yields what `act` returns for this service, and before it the progress of a map of several passes."""

        def work(report: Progress) -> PageUpdate:
            reporting = copy(self)
            reporting.report = report
            return act(reporting)

        reports = follow(work, threading.Event())
        while True:
            try:
                yield PageUpdate(question=None, status=progress(next(reports)))
            except StopIteration as end:
                yield end.value
                return

    # -- what takes long -----------------------------------------------------------------------------------------------

    def draw(self, visitor: str, query: str, changes: Mapping[str, Any]) -> Generator[PageUpdate, None, None]:
        """Draws one of the long views, and yields its progress."""
        question = read(query).heard(changes)
        view, session = question.view, self.sessions.of(visitor)
        if view not in LONG:
            yield self._show(session, question)
            return
        if session.stop is not None:
            session.stop.set()
        stop = session.stop = threading.Event()
        words = WordsDrawing(stop) if view == "words" else None

        def work(report: Callable[[str, int, int], None]) -> tuple[ViewContext, ViewResult]:
            if words is not None:
                words.load(question, changes, self.vlms, report)  # before the turn is taken, as of other models
            with self.queue.long(person_of(visitor), lambda ahead: report(f"waiting, {ahead} ahead", 0, 0)) as breathe:

                def tick(doing: str, done: int, total: int) -> None:
                    report(doing, done, total)
                    breathe()

                context = self._context(session, question)
                tick("starting", 0, 0)
                if words is not None:
                    return context, words.draw(context, tick)
                return context, LONG_VIEWS[view](context, session.guide, tick)

        def asked_still() -> bool:
            again = session.stop is not stop and session.working == view  # the same may have been asked once more
            return not again and replace(session.latest or question, view=view).essence() == question.essence()

        session.working, session.latest = view, question
        session.answers.pop(view, None)  # it answers another question
        begun = progress(Report("starting", 0, 0))
        yield PageUpdate(question=question, views={view: begun}, words=None if words is None else {})
        try:
            reports = follow(work, stop)
            while True:
                try:
                    report = next(reports)
                except StopIteration as end:
                    context, answer = end.value
                    break
                shown = progress(report) if words is None else words.so_far() + progress(report)
                news = words.news() if words is not None and asked_still() else None
                yield PageUpdate(question=None, views={view: shown}, words=news)
        except Stopped:
            said = "" if words is None else words.so_far()
            again = nothing(f"Stopped. Press <b>{DRAW[view]}</b> to begin again.")
            yield PageUpdate(question=None, views={view: said + again})
        except Exception as error:
            yield PageUpdate(question=None, views={view: excuse(error, view)})
        else:
            if not asked_still():
                return  # another question has been asked meanwhile, and the view already says so
            session.answers[view] = replace(answer, html="", essence=question.essence())  # the page has it
            shown = self._shown(context, {view: answer.html}, session.answers[view])
            shown = replace(shown, words=None if words is None else words.news(ended=True))
            here = session.latest is None or session.latest.view == view
            yield shown if here else PageUpdate(question=None, views=shown.views, words=shown.words)
        finally:
            if session.stop is stop:
                session.working = None

    def stop(self, visitor: str) -> None:
        """Stops the visitor's job."""
        session = self.sessions.of(visitor)
        if session.stop is not None:
            session.stop.set()

    # -- what goes out -------------------------------------------------------------------------------------------------

    def download(self, visitor: str, query: str, kind: str) -> tuple[str, str, bytes]:
        """Returns a file of the view: its name, its type, its bytes.

        Raises:
            ImageError: where there is no such file, because nothing is drawn, say.
        """
        view, session = read(query).view, self.sessions.of(visitor)
        answer = session.answers.get(view)
        if answer is None or kind not in answer.files or session.picture is None:
            raise ImageError("there is nothing to save yet: draw it first")
        stem = session.picture.name.rpartition(".")[0] or session.picture.name
        with self.queue.quick():
            return f"{stem}.{answer.name}.{kind}", TYPES[kind], answer.files[kind]()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _uploaded(self, name: str, content: bytes | None) -> Picture:
        try:
            return uploaded(name, content, self.limits)
        except ImageError as error:
            message = (
                str(error).replace("the image bytes", "the file").removesuffix(", or raise max_pixels if you trust it")
            )
            message = message.partition("; it begins with ")[0]  # raw bytes say nothing to a visitor
            raise type(error)(f"This picture cannot be used: {message}.") from error

    def _with_picture(
        self, session: Session, question: Question, picture: Callable[[], Picture], *, turned: bool = False
    ) -> PageUpdate:
        try:
            session.put(picture())
        except Exception as error:
            return PageUpdate(question=question, status=excuse(error))
        return self._show(session, question, turned=turned)

    def _both(self, session: Session, question: Question) -> Question:
        """Returns the question of an example with two objects: the model's class of one against that of the other."""
        model = self.models.model(question.model)
        objects = EXAMPLES[question.example].objects
        names = {model.class_name(index): index for index in range(len(model.class_names or ()))}
        if not EXAMPLES[question.example].known(names):
            return question
        logits = self._context(session, question).logits
        first, second = (
            max((names[name] for name in words if name in names), key=lambda index: float(logits[index]))
            for words in objects
        )
        return question.changed(target=first, against=second)

    def _another_model(self, visitor: str, question: Question) -> PageUpdate:
        """Explains the example again if it suits the model, else the first that does."""
        try:
            suited = offered(self.models.model(question.model))
        except Exception as error:
            return PageUpdate(question=question, status=excuse(error))
        key = question.example if question.example in suited else suited[0]
        return self.example(visitor, question.query(), key)

    def _context(self, session: Session, question: Question) -> ViewContext:
        wanted = None
        if question.example in EXAMPLES:  # the session was cleared, or another picture lies on it in this tab
            wanted = example_picture(question.example)
        elif question.picture:
            wanted = session.find(question.picture)
            if wanted is None:
                raise ImageError("The picture of this question is not kept any more: choose it again.")
        if wanted is not None:
            session.put(wanted)
        if session.picture is None:
            raise ImageError("Put a picture in first, or take one of the examples.")
        model = self.models.model(question.model)
        if model.name not in session.seen:
            session.seen[model.name] = look(model, session.picture)
        seen = session.seen[model.name]
        return ViewContext(model, session.picture, seen, question, session.maps, self.report)

    def _show(self, session: Session, question: Question, turned: bool = False) -> PageUpdate:
        """Draws the view of the question if it is quick; else shows how to draw it."""
        view, session.latest = question.view, question
        try:
            self.models.model(question.model)  # loaded before the turn is taken: it may come from far
            with self.queue.quick():
                context = self._context(session, question)
                if view in LONG:
                    return self._long(session, context, turned)
                answer = QUICK_VIEWS[view](context)
                session.answers[view] = replace(answer, html="")
                return self._shown(context, {view: answer.html}, answer)
        except Stopped:  # nobody waits for it any more
            raise
        except Exception as error:
            cells = draw_cells(question) if view == "map" else None
            return PageUpdate(question=question, status=excuse(error), cells=cells)

    def _long(self, session: Session, context: ViewContext, turned: bool) -> PageUpdate:
        view, drawn = context.question.view, session.answers.get(context.question.view)
        if turned and drawn is not None and drawn.essence == context.question.essence():  # only looked at again
            return self._shown(context, {}, drawn)
        if turned and view == session.working:
            return self._shown(context, {}, None)
        if view == session.working and session.stop is not None:
            session.stop.set()  # it answers another question
        session.answers.pop(view, None)
        invitation = nothing(f"{WAITING[view]}<br>Press <b>{DRAW[view]}</b> above.")
        shown = self._shown(context, {view: invitation}, None)
        return replace(shown, words={}) if view == "words" else shown

    def _shown(self, context: ViewContext, views: Mapping[str, str], answer: ViewResult | None) -> PageUpdate:
        question, model = context.question, context.model
        checkpoint = self.models.checkpoints.get(question.model or self.models.first)
        vlm = question.vlm or self.vlms.first
        told = ExportContext(
            question=question,
            model=model,
            picture=context.picture,
            target=context.target,
            rival=context.rival if len(context.logits) > 1 else context.target,  # of one number there is none
            checkpoint=None if checkpoint is None else str(checkpoint),
            facts={} if answer is None else answer.facts,
            vlm=vlm,
            vlm_options=self.vlms.options,
        )
        return PageUpdate(
            question=question,
            classes=draw_classes(context),
            cells=draw_cells(question, told.facts.get("patch")) if question.view == "map" else None,
            views=views,
            recipes=(as_python(told), as_command(told)),
            files=() if answer is None else tuple(answer.files),
            names=tuple(model.class_name(index) for index in range(len(context.logits))),
            examples=SCENES if question.view == "words" and vlm == CAPTIONER else offered(model),
        )


def read(query: str) -> Question:
    """Returns the question of a link."""
    return Question.from_query(dict(parse_qsl(query.removeprefix("?"))))


def excuse(error: Exception, view: str = "") -> str:
    """Returns an error as the visitor reads it; one that only the operator can correct is logged."""
    if isinstance(error, VitrailError):
        return problem(str(error), WORD_CONTROLS if view == "words" else CONTROLS)
    log.error("a question could not be answered", exc_info=error)
    return problem(SORRY)
