"""What the commands say, and where: results on stdout, everything else on stderr; for eyes or for programs."""

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table

from vitrail.errors import VitrailError, escaped, reworded

__all__ = [
    "STARTED",
    "Reporter",
    "Terminal",
    "in_own_words",
    "message_of",
    "one_line",
    "show",
    "show_json",
    "show_table",
    "stages",
    "stop",
]


STARTED = time.perf_counter()  # of the command, as near as can be told
_LACKING = "[{names}: in Python; this command has no option for it]"
_argument: Callable[[str, str], str | None] | None = None  # how the command at hand writes an argument of Python


def in_own_words(argument: Callable[[str, str], str | None]) -> None:
    """Let messages name arguments as the command at hand does; see `vitrail.errors.reworded`."""
    global _argument
    _argument = argument


def show(*fields: object, err: bool = False) -> None:
    """Print one line of tab-separated fields; nothing in them commands the terminal or begins another line."""
    typer.echo("\t".join(one_line(str(field)) for field in fields), err=err)


def show_json(document: Any) -> None:
    """Print a document for programs, in ASCII: any encoding of stdout holds it, and no terminal obeys it."""
    typer.echo(json.dumps(document, indent=2, default=str))


class Terminal(Console):
    """A terminal that draws texts with their control characters written out, whatever holds them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        """The segments of a renderable; rich's own movements of the cursor are no text."""
        for segment in super().render(*args, **options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))


class Reporter:
    """Failure lines, warnings and the progress bar of one run, which share a terminal."""

    def __init__(self, *, as_json: bool, console: Terminal | None = None) -> None:
        self.as_json = as_json
        self.failures: list[dict[str, str]] = []
        self._console = console or Terminal(stderr=True)
        self._progress: Progress | None = None
        self._parts: dict[int, TaskID] = {}
        self.done = 0  # images or steps
        self._notes: dict[str, tuple[str, list[str]]] = {}

    def fail(self, image: str, error: BaseException) -> None:
        """Report an image that could not be explained: `FILE: message`, or one JSON object, on a line of stderr."""
        failure = {"image": image, "error": type(error).__name__, "message": message_of(error)}
        self.failures.append(failure)
        # Most messages begin with the file's name, which the line has already.
        reason = failure["message"].removeprefix(" ".join(image.split())).lstrip(" :")
        self.say(json.dumps(failure) if self.as_json else f"{one_line(image)}: {reason}")

    def note(self, image: str, text: str) -> None:
        """Keep what the reader should know of an image for the end of the run, where each note is said once.

        Notes that differ in their numbers alone are one, in the words of the first.
        """
        key = re.sub(r"[\d.,]*\d", "#", text)
        self._notes.setdefault(key, (text, []))[1].append(image)

    def say_notes(self) -> None:
        """Say each note that was kept, with how many images it is about."""
        if not self.as_json:  # whose reader expects no other lines on stderr than failures
            for text, images in self._notes.values():
                more = f" and {len(images) - 1} more" * (len(images) > 1)
                self.say(f"{images[0]}{more}: {message_of(text)}")
        self._notes.clear()

    def say(self, line: str) -> None:
        """Print a line on stderr, above the progress bar where there is one; nothing in it commands the terminal."""
        if self._progress is None:
            show(line, err=True)
        else:
            self._console.print(one_line(line), soft_wrap=True)

    def advance(self, images: int = 1) -> None:
        """Moves the progress bar by `images`."""
        self.done += images
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0], images)

    def report(self, doing: str, done: int, total: int) -> None:
        """Show how far one image's long method has come, as `progress=` of `vitrail.explain`; a bar for each thread."""
        if self._progress is None:
            return
        self._progress.start()  # which it is not yet for a single image
        thread = threading.get_ident()
        if thread not in self._parts:
            self._parts[thread] = self._progress.add_task(doing, total=total)
        self._progress.update(
            self._parts[thread], description=doing, completed=done, total=total, visible=done < total, refresh=True
        )

    @contextmanager
    def working(self, total: int, doing: str = "explaining") -> Iterator[None]:
        """Show a progress bar where a person watches; pass on the package's warnings.

        One bar for the images or steps, where they are several, and one for each that reports its own parts.
        """
        handler = _Handler(self)
        logger = logging.getLogger("vitrail")
        logger.addHandler(handler)
        try:
            if self._console.is_terminal:
                self._progress = Progress(*_columns(), console=self._console, transient=True)
                self._progress.add_task(doing, total=total, visible=total > 1)
                if total > 1:
                    self._progress.start()
                yield
            else:
                yield
        finally:
            if self._progress is not None and self._progress.live.is_started:
                self._progress.stop()
            self._progress = None
            self._parts.clear()
            logger.removeHandler(handler)
            self.say_notes()


class _Handler(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self.reporter.say(f"{record.levelname.lower()}: {message_of(record.getMessage())}")


@contextmanager
def stages(console: Terminal | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that moves a progress bar, one for each stage, on stderr.

    Where nobody watches (a file, a pipe) it prints a line for each tenth of a stage instead.
    """
    console = console or Terminal(stderr=True)
    with Progress(*_columns(), console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}
        tenths: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            stage = one_line(stage)
            name = stage.partition(",")[0]  # what follows a comma changes from report to report, as a loss does
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total, description=stage)
            tenth = 10 * done // max(total, 1)
            if not console.is_terminal and tenth > tenths.get(name, 0):
                console.print(f"{stage}: {done} of {total}", soft_wrap=True)
            tenths[name] = tenth

        yield report


def stop(error: BaseException, *, as_json: bool = False) -> NoReturn:
    """End the run with exit code 2: the question itself cannot be asked, whatever the image."""
    message = message_of(error)
    show(json.dumps({"error": type(error).__name__, "message": message}) if as_json else f"Error: {message}", err=True)
    raise typer.Exit(2)


def _columns() -> tuple[ProgressColumn, ...]:
    """What a progress bar shows; the description may hold a file's name, so it is no markup."""
    return TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


def show_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, fold: bool = False) -> None:
    """Print aligned columns on a terminal; elsewhere lines of tab-separated fields, each as soon as it is known.

    On a terminal a row is one line, however long, and paths are relative to the working folder, so that they can be
    copied; `fold` breaks fields instead, where they are prose. A field of several paths is a tuple.
    """
    watched = sys.stdout.isatty()
    header = [one_line(field) for field in header]
    lines = ([one_line(_field(field, watched)) for field in row] for row in rows)
    if not watched:
        for number, line in enumerate(lines):
            if number == 0:  # not before: there may be nothing below it
                show(*header)
            show(*line)
            sys.stdout.flush()
        return
    kept = list(lines)
    if not kept:
        return
    used = [column for column in range(len(header)) if any(line[column] for line in kept)]
    console = Terminal()
    if fold:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in used:
            table.add_column(header[column], overflow="fold")
        for line in kept:
            table.add_row(*(line[column] for column in used))
        console.print(table)
        return
    widths = {column: max(cell_len(line[column]) for line in (header, *kept)) for column in used}
    for number, line in enumerate((header, *kept)):
        padded = (line[column] + " " * (widths[column] - cell_len(line[column])) for column in used)
        console.print("  ".join(padded).rstrip(), style="bold" if number == 0 else None, soft_wrap=True)


def _field(value: Any, watched: bool) -> str:
    if isinstance(value, tuple):
        return ", ".join(_field(one, watched) for one in value)
    if watched and isinstance(value, Path) and value.is_absolute() and value.is_relative_to(Path.cwd()):
        return os.path.relpath(value)
    return str(value)


def one_line(text: str) -> str:
    """The text with every control character, line breaks included, written out: file names may hold any.

    >>> one_line("two\\nlines")
    'two\\\\nlines'
    """
    return escaped(text, keep="")


def message_of(error: BaseException | str) -> str:
    """An error in one line, in the words of the command at hand; the type stands before errors of other libraries."""
    text = one_line(error if isinstance(error, str) else " ".join(str(error).split()))
    if not isinstance(error, VitrailError | str):
        return f"{type(error).__name__}: {text}"
    return text if _argument is None else reworded(text, _argument, _LACKING)
