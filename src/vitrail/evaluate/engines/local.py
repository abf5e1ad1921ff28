"""Blocks one after the other in this process, while the next one's images are being read."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..block_evaluator import Worker
from ..parquet_rows import Done

__all__ = ["run_local"]

READERS = 4


def run_local(worker: Worker, blocks: Sequence[int]) -> Iterator[Done]:
    """Measure the blocks in their order; decoding is done in threads, ahead of the model."""
    ahead, pool = ThreadPoolExecutor(1), ThreadPoolExecutor(READERS)
    try:
        coming = None
        for place, block in enumerate(blocks):
            images = worker.read(block, pool) if coming is None else coming.result()
            following = blocks[place + 1 : place + 2]
            coming = ahead.submit(worker.read, following[0], pool) if following else None
            yield worker.measure(block, images)
    finally:
        for threads in (ahead, pool):  # whoever interrupts does not wait for pictures that nobody wants any more
            threads.shutdown(wait=False, cancel_futures=True)
