"""One run by several processes of one machine or more, started by torchrun: each takes its share of the blocks."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

from ...errors import VitrailError
from ..folder import RunFolder

__all__ = ["holding", "local_rank"]

PATIENCE = timedelta(days=7)  # for the slowest process to end


def local_rank() -> int | None:
    """The number of this process on its machine; None where torchrun has not started it."""
    return int(os.environ["LOCAL_RANK"]) if _processes() > 1 and "LOCAL_RANK" in os.environ else None


@contextmanager
def holding(folder: RunFolder, manifest: Mapping[str, Any], blocks: int) -> Iterator[tuple[list[int], list[int]]]:
    """Hold the folder for this run; give the blocks that are wanting, and those of them that are this process's.

    Under torchrun the first process holds it for all, and leaves it when the last one is done.

    Raises:
        RunFolderError, RunFolderInUseError, OutputFileError: in every process, as `RunFolder.writing` does.
    """
    if _processes() == 1:
        with folder.writing(manifest):
            wanting = _wanting(folder, blocks)
            yield wanting, wanting
        return
    import torch.distributed as dist

    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        with ExitStack() as stack:
            said: list[Any] = [None]
            if rank == 0:
                try:
                    stack.enter_context(folder.writing(manifest))
                    said = [_wanting(folder, blocks)]
                except VitrailError as error:
                    said = [error]
            dist.broadcast_object_list(said)
            if isinstance(said[0], VitrailError):
                raise said[0]
            yield said[0], said[0][rank::world]
            dist.barrier()
    finally:
        if mine:
            dist.destroy_process_group()


def _wanting(folder: RunFolder, blocks: int) -> list[int]:
    done = folder.done()
    return [number for number in range(blocks) if number not in done]


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
