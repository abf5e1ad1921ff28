"""Passes side by side on a CPU, each with its share of the processor's threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.memory import free_memory
from vitrail.memory.batch_size import SURELY, kept_bytes
from vitrail.models import VisionModel

__all__ = ["lanes_for", "sharing_out"]

# Threads of one pass wait for each other at every operation, and all of them for the one that decoding holds up: a pass
# on fewer threads waits less. Beyond some lanes it is Python's own lock that they would wait for.
MOST = 4


def lanes_for(model: VisionModel, image: Float[Tensor, "channels height width"], size: int) -> int:
    """How many passes over `size` images like this one go side by side: several where all are next to no memory."""
    if model.device.type != "cpu":
        return 1
    lanes = min(MOST, torch.get_num_threads())
    kept = lanes * size * kept_bytes(model, image[None].to(model.dtype))
    return lanes if kept < SURELY * free_memory(model.device) else 1


@contextmanager
def sharing_out(lanes: int) -> Iterator[Callable[[], None]]:
    """Initialiser that limits PyTorch's threads per worker."""
    threads = torch.get_num_threads()
    try:
        yield partial(torch.set_num_threads, max(1, threads // lanes))
    finally:
        torch.set_num_threads(threads)  # the last number that anybody sets is that of all threads to come
