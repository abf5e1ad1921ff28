"""How many threads PyTorch works with, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["thread_count"]


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Within the block PyTorch works with `count` threads, at least one; sums depend on how they are shared out.

    It holds for the thread that enters the block; threads that begin later take the number that was last set anywhere.

    Example:
        >>> before = torch.get_num_threads()
        >>> with thread_count(1):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
