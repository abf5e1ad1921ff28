"""The output of the commands: results on stdout, all else on stderr; as tables, progress bars or JSON."""

import json
import logging
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
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
    TimeElapsedColumn,
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
    "interrupts_told",
    "message_of",
    "one_line",
    "progress_of",
    "resumable",
    "show",
    "show_json",
    "show_result",
    "show_table",
    "stages",
    "stop",
]

Report = Callable[[int, int], None]  # done, total


SILENCE = 60.0  # seconds after which a log is told that a run is alive
STARTED = time.perf_counter()  # of the command, as near as can be told
_LACKING = "[{names}: in Python; this command has no option for it]"
_argument: Callable[[str, str], str | None] | None = None  # how the command at hand writes an argument of Python


def in_own_words(argument: Callable[[str, str], str | None]) -> None:
    """Lets messages name arguments as the command at hand does; see `vitrail.errors.reworded`."""
    global _argument
    _argument = argument


def show(*fields: object, err: bool = False) -> None:
    """Prints one line of tab-separated fields, with control characters written out."""
    typer.echo("\t".join(one_line(str(field)) for field in fields), err=err)


def show_json(document: Any) -> None:
    """Prints a JSON document in ASCII, which every encoding of stdout holds."""
    typer.echo(json.dumps(document, indent=2, default=str))


class Terminal(Console):
    """Writes out the control characters of texts on a rich console."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        """Yields the segments of a renderable; rich's own movements of the cursor stay as they are."""
        for segment in super().render(*args, **options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))


class Reporter:
    """Shows the failures, warnings and progress bar of one run on a shared terminal."""

    def __init__(self, *, as_json: bool, console: Terminal | None = None) -> None:
        self.as_json = as_json
        self.failures: list[dict[str, str]] = []
        self._console = console or Terminal(stderr=True)
        self._progress: Progress | None = None
        self._parts: dict[int, TaskID] = {}
        self.done = 0  # images or steps
        self._notes: dict[str, tuple[str, list[str]]] = {}

    def fail(self, image: str, error: BaseException) -> None:
        """Reports an image that could not be explained: `FILE: message`, or one JSON object, on a line of stderr."""
        failure = {"image": image, "error": type(error).__name__, "message": message_of(error)}
        self.failures.append(failure)
        # Most messages begin with the file's name, which the line has already.
        reason = failure["message"].removeprefix(" ".join(image.split())).lstrip(" :")
        self.say(json.dumps(failure) if self.as_json else f"{one_line(image)}: {reason}")

    def note(self, image: str, text: str) -> None:
        """Keeps a note about an image for the end of the run; notes that differ in numbers only are shown once."""
        key = re.sub(r"[\d.,]*\d", "#", text)
        self._notes.setdefault(key, (text, []))[1].append(image)

    def say_notes(self) -> None:
        """Shows each note that was kept, with the number of images that it is about."""
        if not self.as_json:  # whose reader expects no other lines on stderr than failures
            for text, images in self._notes.values():
                more = f" and {len(images) - 1} more" * (len(images) > 1)
                self.say(f"{images[0]}{more}: {message_of(text)}")
        self._notes.clear()

    def say(self, line: str) -> None:
        """Prints a line on stderr, above the progress bar if there is one."""
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
        """Shows the progress of a method on one image, as `progress=` of `vitrail.explain`; a bar for each thread."""
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
    def working(self, total: int, doing: str = "explaining", *, bar: bool = True) -> Iterator[None]:
        """Shows a progress bar on a terminal, and the package's warnings.

        There is one bar for the images or steps, if there are several, and one for each thread that reports parts.
        """
        handler = _Handler(self)
        logger = logging.getLogger("vitrail")
        logger.addHandler(handler)
        try:
            if bar and self._console.is_terminal:
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
    """Yields a function (stage, done, total) that moves a progress bar on stderr, one for each stage.

    Where stderr is no terminal, it prints a line for each tenth of a stage instead.
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
    """Ends the command with exit code 2, for an error that concerns every image."""
    message = message_of(error)
    show(json.dumps({"error": type(error).__name__, "message": message}) if as_json else f"Error: {message}", err=True)
    raise typer.Exit(2)


def _columns() -> tuple[ProgressColumn, ...]:
    """Returns the columns of a progress bar; the description may hold a file name, so it is no markup."""
    return TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


def show_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, fold: bool = False) -> None:
    """Prints aligned columns on a terminal; elsewhere lines of tab-separated fields, each as soon as it is known.

    On a terminal a row is one line, however long, and paths are relative to the working folder, so that they can be
    copied; with `fold` long fields are wrapped instead. A field of several paths is a tuple.
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


def show_result(
    document: Any, header: Sequence[str], rows: Iterable[Sequence[Any]], *, as_json: bool, fold: bool = False
) -> None:
    """Prints the result of a command: the document as JSON, or the rows as a table."""
    if as_json:
        show_json(document)
    else:
        show_table(header, rows, fold=fold)


def _field(value: Any, watched: bool) -> str:
    if isinstance(value, tuple):
        return ", ".join(_field(one, watched) for one in value)
    if watched and isinstance(value, Path) and value.is_absolute() and value.is_relative_to(Path.cwd()):
        return os.path.relpath(value)
    return str(value)


def one_line(text: str) -> str:
    """Returns the text with every control character written out, line breaks included.

    >>> one_line("two\\nlines")
    'two\\\\nlines'
    """
    return escaped(text, keep="")


def message_of(error: BaseException | str) -> str:
    """Returns an error in one line, in the words of the command at hand; foreign errors begin with their type."""
    text = one_line(error if isinstance(error, str) else " ".join(str(error).split()))
    if not isinstance(error, VitrailError | str):
        return f"{type(error).__name__}: {text}"
    return text if _argument is None else reworded(text, _argument, _LACKING)


@contextmanager
def progress_of(console: Terminal, what: str = "evaluating") -> Iterator[Report]:
    """Yields the callback (done, total) of `vitrail evaluate`: a bar with rate and time left on a terminal.

    Elsewhere it prints a line for each tenth of the images, and at least one a minute.
    """
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, rate="")
        first: list[int] = []
        said = [0, 0.0]  # the tenth and the second of the last line

        def report(done: int, total: int) -> None:
            first.append(done)
            elapsed = bar.tasks[task].elapsed or 0.0
            rate = (done - first[0]) / elapsed if elapsed else 0.0
            bar.update(task, completed=done, total=total, rate=f"{rate:.2f} images/s" if rate else "")
            if console.is_terminal:
                return
            tenth = 10 * done // max(total, 1)
            if len(first) == 1:
                if done:
                    console.print(f"{what}: {done} of {total} images are there already", soft_wrap=True)
            elif tenth > said[0] or elapsed > said[1] + SILENCE:
                left = f", {timedelta(seconds=round((total - done) / rate))} left" if rate and done < total else ""
                console.print(f"{what}: {done} of {total} images, {rate:.2f} a second{left}", soft_wrap=True)
            else:
                return
            said[:] = tenth, elapsed

        yield report


@contextmanager
def resumable(output: Path, report: Report, console: Terminal) -> Iterator[Report]:
    """Yields the callback `report`; an interrupt shows at once how to resume the run, and sets exit code 130."""
    last = [0, 0]

    def follow(done: int, total: int) -> None:
        last[:] = done, total
        report(done, total)

    def say() -> None:
        there = f"{last[0]} of {last[1]} images are in {output}" if last[1] else "nothing was measured yet"
        console.print(one_line(f"interrupted: {there}; resume with: {_same_command()}"), soft_wrap=True)

    try:
        with interrupts_told(say):
            yield follow
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextmanager
def interrupts_told(say: Callable[[], None]) -> Iterator[None]:
    """Calls `say` once, as soon as the process is interrupted, where Python waits for the end of a long operation.

    The call comes from another thread while one of PyTorch's operations runs in this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    inside, outside = socket.socketpair()
    outside.setblocking(False)
    once = threading.Lock()

    def first() -> None:
        if once.acquire(blocking=False):
            say()

    def watch() -> None:
        while number := inside.recv(1):
            if number[0] == signal.SIGINT:
                first()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(outside.fileno(), warn_on_full_buffer=False)
    try:
        yield
    except KeyboardInterrupt:
        first()
        raise
    finally:
        signal.set_wakeup_fd(before)
        outside.close()
        thread.join(1)
        inside.close()


def _same_command() -> str:
    """Returns the command line, to be typed again."""
    name = Path(sys.argv[0]).name
    if "RANK" in os.environ:
        return "the same torchrun command"
    return shlex.join([*(["python", "-m", "vitrail.cli"] if name.endswith(".py") else [name]), *sys.argv[1:]])
