"""The work behind `vitrail evaluate`: words to values, the run with its progress, and what it found in few lines."""

import os
import shlex
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitrail.cli.console import Terminal, message_of, one_line, show, show_json, show_table
from vitrail.cli.loading import load_named

if TYPE_CHECKING:
    from vitrail.evaluate.parquet_rows import Failure
    from vitrail.evaluate.runner import Estimate

__all__ = ["run", "told_at_once"]

Report = Callable[[int, int], None]

SILENCE = 60.0  # seconds after which a log is told that the run is alive


def run(
    data: str,
    model: str,
    checkpoint: Path | None,
    *,
    load: Mapping[str, Any],
    words: Mapping[str, Mapping[str, str]],
    question: Mapping[str, Any],
    as_json: bool,
    only_plan: bool = False,
) -> bool:
    """Do or finish the run, or plan it; whether something could not be measured."""
    from vitrail.evaluate.engines.torchrun import local_rank
    from vitrail.evaluate.run_reader import read_run
    from vitrail.evaluate.runner import estimate, evaluate

    rank = local_rank()
    if rank is not None and load["device"] in ("auto", "cuda"):
        load = dict(load) | {"device": _device_of(rank)}
    methods, protocols = _options(words)
    vision = load_named(model, checkpoint, **load)
    question = dict(question) | {"method_options": methods, "protocol_options": protocols}
    if only_plan:
        question = {key: value for key, value in question.items() if key not in ("engine", "engine_options")}
        _show_plan(estimate(vision, data, **question), as_json)
        return False
    console = Terminal(stderr=True, quiet=bool(rank))
    with _progress(console) as report, _interrupted(question["output"], report, console) as follow:
        outcome = evaluate(vision, data, **question, progress=follow)
    if rank:  # the first process speaks for all
        return False
    found = read_run(outcome.folder)
    failures = [failure for failure in found.failures if not _unknown(failure)]
    if as_json:
        document = {
            "output": str(outcome.folder),
            "images": outcome.images,
            "measured": outcome.measured,
            "rows": len(found.rows),
            "failures": len(failures),
            "unknown": len(found.failures) - len(failures),  # what the data do not tell of an image
            "notes": list(outcome.notes),
        }
        show_json(document)
        return bool(failures)
    left_out = Counter(
        {
            (one.image, one.protocol, one.reason): (one.protocol, one.reason) for one in found.failures if _unknown(one)
        }.values()
    )
    less = [f"{name} leaves out {count} of {outcome.images} images: {why}" for (name, why), count in left_out.items()]
    for note in (*outcome.notes, *less):
        show(f"note: {note}", err=True)
    for failure in failures[:10]:
        where = " ".join(word for word in (failure.source, failure.method, failure.protocol) if word)
        # Most reasons begin with the file's path, of which the line has what matters.
        folder, found_it, rest = failure.reason.partition(failure.source)
        reason = rest.lstrip(" :") if found_it and " " not in folder else failure.reason
        show(f"{where}: {message_of(reason)}", err=True)
    if len(failures) > 10:
        show(f"… and {len(failures) - 10} failures more, all of them in the report", err=True)
    already = outcome.images - outcome.measured
    show(
        f"{outcome.measured} images measured" + (f", {already} were there already" if already else "") + f": "
        f"{len(found.rows)} rows in {outcome.folder}; vitrail report {outcome.folder} shows them"
    )
    return bool(failures)


def _show_plan(found: "Estimate", as_json: bool) -> None:
    from vitrail.cli.planning import duration

    if as_json:
        show_json(asdict(found))
        return
    for note in found.notes:
        show(f"note: {note}", err=True)
    there = f", {found.images - found.left} are there already" if found.left < found.images else ""
    rows = [
        ("images", f"{found.images}{there}"),
        ("time", f"{found.seconds_per_image:.3g} s an image, {duration(found.seconds)} in one process"),
    ]
    show_table(("what", "how much"), rows)


@contextmanager
def _interrupted(output: Path, report: Report, console: Terminal) -> Iterator[Report]:
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


def _unknown(failure: "Failure") -> bool:
    """Whether the data do not tell what a protocol needs of this image, which is no fault of anything."""
    return failure.method is not None and failure.reason.startswith("no ")


def _options(words: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Options as values, those of methods and those of protocols."""
    from vitrail.errors import OptionError
    from vitrail.evaluate.protocols import PROTOCOLS, find_protocol
    from vitrail.methods import METHODS, find_method
    from vitrail.methods.option_values import typed, typed_options

    methods: dict[str, dict[str, Any]] = {}
    protocols: dict[str, dict[str, Any]] = {}
    for name, own in words.items():
        if name in PROTOCOLS:
            info = find_protocol(name, dict(own))
            protocols[name] = typed(info.function, own, f"protocol {name!r}")
        elif name in METHODS:
            methods[name] = typed_options(find_method(name, {}), own)
        else:
            raise OptionError(f"{name} is neither a method nor a protocol, so --option {name}.… means nothing")
    return methods, protocols


def _device_of(rank: int) -> str:
    import torch

    return f"cuda:{rank}" if torch.cuda.is_available() else "cpu"


@contextmanager
def _progress(console: Terminal) -> Iterator[Callable[[int, int], None]]:
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
