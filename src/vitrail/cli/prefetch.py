"""Images run in batches, the next ones loaded in threads beforehand; a bad image takes no other down with it."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeVar

from vitrail.errors import MethodError, ModelError, ObjectiveError, SameClassError, TargetError

__all__ = ["QUESTION_ERRORS", "WORKERS", "in_batches", "in_threads"]

# Pillow and NumPy let go of Python's lock while they decode, resize and compress.
WORKERS = min(8, os.cpu_count() or 1)

# The question is at fault, not the image: it would fail for every other image too, so nothing is retried.
QUESTION_ERRORS = (MethodError, ModelError, ObjectiveError, TargetError)

Item = TypeVar("Item")
Made = TypeVar("Made")
Key = TypeVar("Key")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Run = Callable[[list[Key], list[Loaded]], Iterable[Result]]


@dataclass(frozen=True)
class Failure:
    """Why a member has no result."""

    error: Exception


def in_batches(
    keys: Iterable[Key],
    load: Callable[[Key], Loaded],
    run: Run[Key, Loaded, Result],
    *,
    size: int,
    failed: Callable[[Key, Exception], None],
    lanes: Callable[[Loaded], int] = lambda _: 1,
) -> Generator[tuple[Key, Result], None, None]:
    """Load each key, run `size` of them at a time, and yield each with its result, in order.

    The keys of the next batch are loaded in threads while this one runs, so `load` must bear that. The first batch
    is run in the caller's own thread; where there are more, `lanes` says, of one that was loaded, how many go side
    by side, each in a thread of its own with its share of the processor. A key that cannot be loaded goes to
    `failed`, which is called in the caller's thread. When a batch fails, its members are run one by one, so that
    only the guilty go to `failed`. Errors of the question (`QUESTION_ERRORS`) are raised at once, except
    `SameClassError`, which may be one image's.
    """
    with closing(in_threads(load, keys, depth=size)) as loading:
        batches = _full_batches(loading, size, failed)
        for first in islice(batches, 1):
            yield from _successes(_run(run, first), failed)
        second = next(batches, None)
        if second is None:
            return
        batches = chain([second], batches)
        beside = lanes(second[0][1])
        if beside == 1:
            for batch in batches:
                yield from _successes(_run(run, batch), failed)
            return
        from vitrail.cli.cpu_parallelism import sharing_out  # which needs PyTorch

        with (
            sharing_out(beside) as enter_lane,
            closing(in_threads(partial(_run, run), batches, workers=beside, depth=beside, enter=enter_lane)) as running,
        ):
            for _, results in running:
                yield from _successes(results.result(), failed)


def _full_batches(
    loading: Iterable[tuple[Key, Future[Loaded]]], size: int, failed: Callable[[Key, Exception], None]
) -> Iterator[list[tuple[Key, Loaded]]]:
    """What was loaded, `size` together; what cannot be loaded goes to `failed`."""
    waiting: list[tuple[Key, Loaded]] = []
    for key, loaded in loading:
        try:
            waiting.append((key, loaded.result()))
        except QUESTION_ERRORS:
            raise
        except Exception as error:
            failed(key, error)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _run(run: Run[Key, Loaded, Result], members: list[tuple[Key, Loaded]]) -> list[tuple[Key, Result | Failure]]:
    """Each member with its result, or with why it has none."""
    keys = [key for key, _ in members]
    try:
        results = list(run(keys, [loaded for _, loaded in members]))
    except Exception as error:  # whatever a model or a device may raise: out of memory, say
        # What a prediction is held against may be itself on one image only; other such faults are the question's.
        if isinstance(error, QUESTION_ERRORS) and not isinstance(error, SameClassError):
            raise
        if len(members) == 1:
            return [(keys[0], Failure(error))]
        return [told for member in members for told in _run(run, [member])]
    return list(zip(keys, results, strict=True))


def _successes(
    told: Iterable[tuple[Key, Result | Failure]], failed: Callable[[Key, Exception], None]
) -> Iterator[tuple[Key, Result]]:
    for key, result in told:
        if isinstance(result, Failure):
            failed(key, result.error)
        else:
            yield key, result


def in_threads(
    function: Callable[[Item], Made],
    items: Iterable[Item],
    *,
    workers: int = WORKERS,
    depth: int = 16,
    prompt: bool = False,
    enter: Callable[[], None] | None = None,
) -> Generator[tuple[Item, "Future[Made]"], None, None]:
    """Each item with its future, in order, while the `depth` items after it are already being worked on.

    `items` is drawn from in the caller's thread. With `prompt` an item is yielded as soon as it is done and its turn;
    otherwise the queue behind it is filled first. Each thread
    begins with `enter`. When the generator is closed, or the caller is interrupted, what has
    not begun is dropped, and what has begun is waited for.

    Example:
        >>> [(item, made.result()) for item, made in in_threads(abs, [-1, -2, 3], depth=2)]
        [(-1, 1), (-2, 2), (3, 3)]
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vitrail", initializer=enter)
    waiting: deque[tuple[Item, Future[Made]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            while waiting and (len(waiting) > depth or (prompt and waiting[0][1].done())):
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
