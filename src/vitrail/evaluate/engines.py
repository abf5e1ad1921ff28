"""Where blocks of images are measured: in this process, in several that torchrun started, or on a Ray cluster."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from ..errors import OptionError, VitrailError
from ..metrics.protocol import check_one_of
from ..models.vision_model import VisionModel
from ..threads import thread_count
from .block_worker import READERS, BlockWorker
from .parquet_rows import Done
from .ray_engine import run_ray
from .run_directory import RunFolder, compare_runs

__all__ = [
    "ENGINES",
    "agreed",
    "find_engine",
    "holding",
    "local_rank",
    "measure_missing",
    "processes",
    "rows_and_threads",
    "run_local",
    "together",
]

Engine = Callable[..., Iterator[Done]]
Value = TypeVar("Value")

PATIENCE = timedelta(days=7)  # for the slowest process to end


def run_local(worker: BlockWorker, blocks: Sequence[int]) -> Iterator[Done]:
    """Measures the blocks in their order; decoding is done in threads, ahead of the model."""
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


# Each takes a worker, the numbers of the blocks that are wanted, and its own options; blocks come as they are done.
ENGINES: Mapping[str, Engine] = MappingProxyType({"local": run_local, "ray": run_ray})


def find_engine(name: str) -> Engine:
    """Returns the engine of that name.

    Raises:
        OptionError: for an unknown engine, and for another than the local one under torchrun.
    """
    check_one_of("engine", name, list(ENGINES))
    if processes() > 1 and name != "local":
        raise OptionError(f"torchrun and engine={name!r} both share a run out: start it without torchrun")
    return ENGINES[name]


def measure_missing(
    worker: BlockWorker,
    folder: RunFolder,
    manifest: Mapping[str, Any],
    *,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Measures the blocks that the folder lacks and writes each; returns the number of images that it had already.

    Must be called within `together`. `progress` is told (images done by all processes, images in all).

    Raises:
        RunFolderError, RunFolderInUseError: when `folder` holds another run, or another process writes there.
        OutputFileError: when it cannot be written.
        VitrailError: what the worker met and could not go on from.
    """
    run, several, total = find_engine(engine), processes() > 1, len(worker.data)
    with thread_count(worker.plan.threads), holding(folder, manifest, worker.blocks()) as (wanting, ours):
        already = images = total - worker.images(wanting)
        if progress is not None:
            progress(already, total)
        for one in run(worker, ours, **(engine_options or {})):
            folder.write(one)
            images += one.images
            if several:  # the others' too
                images = total - worker.images(set(wanting) - folder.done())
            if progress is not None:
                progress(images, total)
    if several and progress is not None and images < total:
        progress(total, total)
    return already


# -- several processes of one run, each with its share of the blocks ---------------------------------------------------


def processes() -> int:
    """Returns the number of torchrun's processes for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_rank() -> int | None:
    """Returns the number of this process on its machine; None where torchrun has not started it."""
    return int(os.environ["LOCAL_RANK"]) if processes() > 1 and "LOCAL_RANK" in os.environ else None


@contextmanager
def together() -> Iterator[None]:
    """Lets the processes of torchrun speak to each other in the block; nothing where there is one."""
    import torch.distributed as dist

    if processes() == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def agreed(value: Value) -> Value:
    """Returns the first process's value; all processes must call it, within `together`."""
    if processes() == 1:
        return value
    import torch.distributed as dist

    said: list[Any] = [value]
    dist.broadcast_object_list(said)
    return said[0]


@contextmanager
def holding(folder: RunFolder, manifest: Mapping[str, Any], blocks: int) -> Iterator[tuple[list[int], list[int]]]:
    """Holds the folder for this run; gives the blocks that are wanting, and those of them that are this process's.

    Under torchrun, within `together`, the first process holds it for all, and leaves it when the last one is done.

    Raises:
        RunFolderError, RunFolderInUseError, OutputFileError: in every process, as `RunFolder.writing` does.
        RunFolderError: in a process that sees other data, another model or other versions than the first.
    """
    if processes() == 1:
        with folder.writing(manifest):
            wanting = _wanting(folder, blocks)
            yield wanting, wanting
        return
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    with ExitStack() as stack:
        said: Any = None
        if rank == 0:
            try:
                stack.enter_context(folder.writing(manifest))
                said = _wanting(folder, blocks)
            except VitrailError as error:
                said = error
        said, first = agreed((said, dict(manifest)))
        if isinstance(said, VitrailError):
            raise said
        compare_runs(first, manifest, f"process {rank} would do another run than process 0")
        yield said, said[rank::world]
        dist.barrier()


def _wanting(folder: RunFolder, blocks: int) -> list[int]:
    done = folder.done()
    return [number for number in range(blocks) if number not in done]


# -- how much goes through the model together --------------------------------------------------------------------------


def rows_and_threads(model: VisionModel, folder: RunFolder, batch_size: int | None) -> tuple[int, int]:
    """Returns the rows of a pass and PyTorch's threads: as asked, else as in the run in the folder, else as fits.

    Free memory and threads may differ from process to process, and what they decide changes roundings: the first
    process speaks for all.
    """
    before = (folder.manifest() or {}).get("plan", {})
    return agreed(
        (batch_size or before.get("batch") or _batch_for(model), before.get("threads") or torch.get_num_threads())
    )


def _batch_for(model: VisionModel) -> int:
    """Returns the rows of a pass: on a CPU more than 32 gain nothing; on a GPU those that half of its free
    memory holds.
    """
    if model.device.type != "cuda" or model.preprocess is None:
        return 32
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    with torch.no_grad():
        model.logits(model.blank(8))
    each = max(1, torch.cuda.max_memory_allocated(model.device) - before) / 8
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(8, min(1024, 2 ** int(math.log2(max(8.0, free / 2 / each)))))
