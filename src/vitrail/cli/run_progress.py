"""The progress of a run of `vitrail evaluate`, and what an interrupt of it says at once."""

import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitrail.cli.console import Terminal, one_line

__all__ = ["progress_of", "resumable", "told_at_once"]

Report = Callable[[int, int], None]

SILENCE = 60.0  # seconds after which a log is told that the run is alive


@contextmanager
def progress_of(console: Terminal) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left for eyes; for a file a line for each tenth, and each minute of a long run."""
    columns = (
        TextColumn("evaluating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=None, rate="")
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
                    console.print(f"evaluating: {done} of {total} images are there already", soft_wrap=True)
            elif tenth > said[0] or elapsed > said[1] + SILENCE:
                left = f", {timedelta(seconds=round((total - done) / rate))} left" if rate and done < total else ""
                console.print(f"evaluating: {done} of {total} images, {rate:.2f} a second{left}", soft_wrap=True)
            else:
                return
            said[:] = tenth, elapsed

        yield report


@contextmanager
def resumable(output: Path, report: Report, console: Terminal) -> Iterator[Report]:
    """Say at once, where somebody interrupts, how the run is resumed; the report that counts what is there."""
    last = [0, 0]

    def follow(done: int, total: int) -> None:
        last[:] = done, total
        report(done, total)

    def say() -> None:
        there = f"{last[0]} of {last[1]} images are in {output}" if last[1] else "nothing was measured yet"
        console.print(one_line(f"interrupted: {there}; resume with: {_same_command()}"), soft_wrap=True)

    try:
        with told_at_once(say):
            yield follow
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextmanager
def told_at_once(say: Callable[[], None]) -> Iterator[None]:
    """Call `say` as soon as the process is interrupted, where Python itself waits for the end of a long operation.

    It is called once, from another thread while one of PyTorch's operations goes on in this one.
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
    """What was typed, to be typed again."""
    name = Path(sys.argv[0]).name
    if "RANK" in os.environ:
        return "the same torchrun command"
    return shlex.join([*(["python", "-m", "vitrail.cli"] if name.endswith(".py") else [name]), *sys.argv[1:]])
