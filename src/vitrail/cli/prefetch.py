"""Work done in threads ahead of or behind the model: in order, a bounded number of pieces at a time."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["WORKERS", "in_threads"]

# Pillow and NumPy let go of Python's lock while they decode, resize and compress.
WORKERS = min(8, os.cpu_count() or 1)

Item = TypeVar("Item")
Made = TypeVar("Made")


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
