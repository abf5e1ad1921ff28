"""What the commands say, and where: results on stdout, everything else on stderr; for eyes or for programs."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Reporter", "one_line", "show_table", "stages", "stop"]


class Reporter:
    """Failure lines, warnings and the progress bar of one run, which share a terminal."""

    def __init__(self, *, as_json: bool, console: Console | None = None) -> None:
        self.as_json = as_json
        self.failures: list[dict[str, str]] = []
        self._console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._parts: dict[int, TaskID] = {}

    def fail(self, image: str, error: BaseException) -> None:
        """Report an image that could not be explained: `FILE: message`, or one JSON object, on a line of stderr."""
        failure = {"image": image, "error": type(error).__name__, "message": _message(error)}
        self.failures.append(failure)
        # Most messages begin with the file's name, which the line has already.
        reason = failure["message"].removeprefix(" ".join(image.split())).lstrip(" :")
        self.say(json.dumps(failure) if self.as_json else f"{one_line(image)}: {reason}")

    def say(self, line: str) -> None:
        """Print a line on stderr, above the progress bar where there is one."""
        if self._progress is None:
            typer.echo(line, err=True)
        else:
            self._console.print(line, markup=False, emoji=False, soft_wrap=True)

    def advance(self, images: int = 1) -> None:
        """Move the progress bar by so many images."""
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
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self._progress = Progress(*columns, console=self._console, transient=True)
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


class _Handler(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self.reporter.say(f"{record.levelname.lower()}: {one_line(record.getMessage())}")


@contextmanager
def stages(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that moves a progress bar, one for each stage, on stderr.

    Where nobody watches (a file, a pipe) it prints a line for each tenth of a stage instead.
    """
    console = console or Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}
        tenths: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            name = stage.partition(",")[0]  # what follows a comma changes from report to report, as a loss does
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total, description=stage)
            tenth = 10 * done // max(total, 1)
            if not console.is_terminal and tenth > tenths.get(name, 0):
                console.print(f"{stage}: {done} of {total}", markup=False, soft_wrap=True)
            tenths[name] = tenth

        yield report


def stop(error: BaseException, *, as_json: bool = False) -> NoReturn:
    """End the run with exit code 2: the question itself cannot be asked, whatever the image."""
    message = _message(error)
    typer.echo(
        json.dumps({"error": type(error).__name__, "message": message}) if as_json else f"Error: {message}", err=True
    )
    raise typer.Exit(2)


def show_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for eyes on a terminal; elsewhere lines of tab-separated fields, each as soon as it is known."""
    lines = ([one_line(str(field)) for field in row] for row in rows)
    if not sys.stdout.isatty():
        for number, line in enumerate(lines):
            if number == 0:  # not before: there may be nothing below it
                typer.echo("\t".join(header))
            typer.echo("\t".join(line))
            sys.stdout.flush()
        return
    kept = list(lines)
    if not kept:
        return
    used = [column for column in range(len(header)) if any(line[column] for line in kept)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in used:
        table.add_column(header[column], overflow="fold")
    for line in kept:
        table.add_row(*(line[column] for column in used))
    Console(highlight=False, markup=False, emoji=False).print(table)


def one_line(text: str) -> str:
    """The text with every control character, line breaks included, written out: file names may hold any.

    >>> one_line("two\\nlines")
    'two\\\\nlines'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _message(error: BaseException) -> str:
    from vitrail.errors import VitrailError

    text = " ".join(str(error).split())
    return text if isinstance(error, VitrailError) else f"{type(error).__name__}: {text}"
