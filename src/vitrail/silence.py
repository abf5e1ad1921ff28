"""Warnings of other libraries silenced for a moment."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silenced"]

# Python keeps one list of filters for the whole process: two threads that each put it back would lose one another's.
_ONE_THREAD = threading.RLock()


@contextmanager
def silenced(category: type[Warning] = Warning, *, message: str = "", module: str = "") -> Iterator[None]:
    """Within the block, which one thread enters at a time, warnings of the kind are ignored.

    `message` and `module` are regular expressions for the beginning of the text, and of the name of what warns.

    Example:
        >>> import warnings
        >>> with silenced(UserWarning, message="nothing"):
        ...     warnings.warn("nothing to see", stacklevel=1)
    """
    with _ONE_THREAD, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
        yield
