"""Compiled code made to run as written: inside a compiled graph, attention cannot be reached."""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["eager"]

_LOCK = threading.Lock()
_INSIDE = 0
_STANCE = ExitStack()


@contextmanager
def eager() -> Iterator[None]:
    """Within the block, whatever `torch.compile` made runs its plain form; afterwards the compiled one again.

    The stance is one for all threads, so the first to enter sets it and the last to leave restores it. Where nothing
    has imported the compiler, nothing can be compiled, and it is not imported here either.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    import torch

    global _INSIDE
    with _LOCK:
        if _INSIDE == 0:
            _STANCE.enter_context(torch.compiler.set_stance("force_eager"))
        _INSIDE += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE -= 1
            if _INSIDE == 0:
                _STANCE.close()
