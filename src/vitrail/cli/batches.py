"""Images through a function in batches, such that a bad one takes no other down with it."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from vitrail.cli.ahead import in_threads
from vitrail.errors import MethodError, ModelError, ObjectiveError, SameClassError, TargetError

__all__ = ["QUESTION_ERRORS", "in_batches"]

# The question is at fault, not the image: it would fail for every other image too, so nothing is retried.
QUESTION_ERRORS = (MethodError, ModelError, ObjectiveError, TargetError)

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


def in_batches(
    keys: Iterable[Key],
    load: Callable[[Key], Loaded],
    run: Callable[[list[Key], list[Loaded]], Iterable[Result]],
    *,
    size: int,
    failed: Callable[[Key, Exception], None],
) -> Generator[tuple[Key, Result], None, None]:
    """Load each key, run `size` of them at a time, and yield each with its result, in order of completion.

    The keys of the next batch are loaded in threads while this one runs, so `load` must bear that; `run` and `failed`
    are called in the caller's own. A key that cannot be loaded goes to `failed`. When a batch fails, its members are
    run one by one, so that only the guilty go to `failed`. Errors of the question (`QUESTION_ERRORS`) are raised at
    once, except `SameClassError`, which may be one image's.
    """
    waiting: list[tuple[Key, Loaded]] = []
    with closing(in_threads(load, keys, depth=size)) as loading:
        for key, loaded in loading:
            try:
                waiting.append((key, loaded.result()))
            except QUESTION_ERRORS:
                raise
            except Exception as error:
                failed(key, error)
            if len(waiting) == size:
                yield from _run(waiting, run, failed)
                waiting = []
        if waiting:
            yield from _run(waiting, run, failed)


def _run(
    members: list[tuple[Key, Loaded]],
    run: Callable[[list[Key], list[Loaded]], Iterable[Result]],
    failed: Callable[[Key, Exception], None],
) -> Iterator[tuple[Key, Result]]:
    keys = [key for key, _ in members]
    try:
        results = list(run(keys, [loaded for _, loaded in members]))
    except Exception as error:  # whatever a model or a device may raise: out of memory, say
        # What a prediction is held against may be itself on one image only; other such faults are the question's.
        if isinstance(error, QUESTION_ERRORS) and not isinstance(error, SameClassError):
            raise
        if len(members) == 1:
            failed(keys[0], error)
        else:
            for member in members:
                yield from _run([member], run, failed)
        return
    yield from zip(keys, results, strict=True)
