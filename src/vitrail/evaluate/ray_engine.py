"""Blocks on a Ray cluster: Ray Data's pool of actors, each with a model of its own; what a dying worker had is done
again."""

import copy
import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from ..errors import ModelError, OptionError, VitrailError, how_to_install
from .block_worker import READERS, BlockWorker
from .parquet_rows import Done

__all__ = ["run_ray"]

RETRIES = 5  # of a block whose worker died: Ray itself would go on for ever with one that kills whoever measures it


def run_ray(
    worker: BlockWorker,
    blocks: Sequence[int],
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus: float | int | None = None,
) -> Iterator[Done]:
    """Measures the blocks in no particular order; their rows are those that the local engine gives.

    `address` is that of a running cluster, as `ray.init` takes it ("local" starts one on this machine whatever else
    runs; by default RAY_ADDRESS, then a Ray that runs on this machine, then one of its own). `workers` actors at most,
    default: one per GPU, or one per processor's share of `threads`; `gpus` each, a part of one allowed, default one
    where the model is on a GPU. Every node must be able to read the data under the same path; only this process writes
    to the run's folder. The model stays where it is.

    Raises:
        OptionError: where Ray is not installed or cannot start, or the cluster has no room for a single actor.
        VitrailError: what a worker met and could not go on from, as the local engine raises it.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import ActorDiedError
    except ImportError as error:
        raise OptionError(f'engine="ray" needs Ray: {how_to_install("ray")}') from error
    device = worker.model.device.type
    if device not in ("cpu", "cuda"):
        raise OptionError(f'engine="ray" computes on processors and CUDA devices, and the model is on {device}')
    if device == "cuda" and gpus is not None and gpus <= 0:
        raise OptionError(f"gpus={gpus} leaves the workers without a GPU, and the model is on one; load it on the CPU")
    if not blocks:
        return
    each = (1.0 if device == "cuda" else 0.0) if gpus is None else float(gpus)
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless somebody asks for it
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of the network, of the machine's limits, of a wrong address
            reason = " ".join(str(error).split()) or type(error).__name__
            where = f" at {address}" if address else ""
            raise OptionError(
                f'Ray could not start{where}: {reason}; give the address= of a running cluster, address="local" '
                'for one of this machine, or engine="local"'
            ) from error
    try:
        cpus, room = _room([node["Resources"] for node in ray.nodes() if node["Alive"]], worker.plan.threads, each)
        count = min(len(blocks), workers or room)
        module = copy_on_cpu(worker.model.module) if device == "cuda" else worker.model.module
        # Everything goes to each node once.
        work = ray.put((type(worker), replace(worker.model, module=module), worker.data, worker.plan, device))
        attempts = ray.remote(num_cpus=0)(_Attempts).remote()
        try:
            with _quiet(ray.data):
                numbers = ray.data.from_items([{"block": number} for number in blocks], override_num_blocks=len(blocks))
                done = numbers.map(
                    cast("Any", _Measure),  # Ray's annotation knows functions alone
                    fn_constructor_args=(work, attempts, RETRIES),
                    compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
                    num_cpus=cpus,
                    num_gpus=each or None,
                )
                # Nothing fetched ahead: what is done is to be written now, not when the next one is done.
                for batch in done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
                    for row in cast("Any", batch).to_pylist():
                        if row["error"]:
                            raise pickle.loads(row["error"])
                        yield Done(row["block"], row["rows"], row["maps"] or None, row["images"])
        except ActorDiedError as error:
            raise ModelError(f"no worker of the Ray cluster could begin: {error}") from error
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _quiet(data: Any) -> Iterator[None]:
    """Silences Ray Data's progress bar and log lines, which would mix with ours; its log files have them."""
    context = data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    handlers = logging.getLogger("ray.data").handlers
    screens = [handler for handler in handlers if type(handler).__name__ == "PlainRayHandler"]
    levels = [screen.level for screen in screens]
    try:
        for screen in screens:
            screen.setLevel(logging.ERROR)
        yield
    finally:
        context.enable_progress_bars = bars
        for screen, level in zip(screens, levels, strict=True):
            screen.setLevel(level)


class _Measure:
    """An actor's work: the model and the data are opened once, then block after block is measured."""

    def __init__(self, work: Any, attempts: Any, retries: int) -> None:
        import ray

        kind, model, data, plan, device = ray.get(work)
        torch.set_num_threads(plan.threads)
        if device == "cuda":
            model = replace(model, module=model.module.cuda())  # this actor's own
        self.worker, self.attempts, self.retries = kind(model, data, plan), attempts, retries

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        block = int(row["block"])
        nothing = {"block": block, "rows": b"", "maps": b"", "images": 0, "error": b""}
        try:
            return nothing | self._measured(block)
        except VitrailError as error:  # a row like others: what Ray wraps around an error loses the error itself
            return nothing | {"error": pickle.dumps(error)}

    def _measured(self, block: int) -> dict[str, Any]:
        import ray

        before = int(ray.get(self.attempts.begin.remote(block)))
        if before > self.retries:
            size = self.worker.plan.block
            raise ModelError(
                f"{before} workers died one after the other over block {block} (images {block * size} to "
                f"{(block + 1) * size - 1}), mostly for want of memory: give fewer workers or a smaller batch"
            )
        with ThreadPoolExecutor(READERS) as pool:
            done = self.worker.measure(block, self.worker.read(block, pool))
        return {"rows": done.rows, "maps": done.maps or b"", "images": done.images}


class _Attempts:
    """How often each block has been begun, which a worker that dies cannot tell any more."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def begin(self, block: int) -> int:
        self.counts[block] += 1
        return self.counts[block] - 1


def copy_on_cpu(module: nn.Module) -> nn.Module:
    """Returns a copy with its weights on the CPU; the module itself is not moved.

    It is copied tensor by tensor, since a GPU that the model nearly fills has no room for a second one.
    """
    copies: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        held = tensor.detach().to("cpu", copy=True)
        copies[id(tensor)] = nn.Parameter(held, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else held
    return copy.deepcopy(module, copies)


def _room(nodes: Sequence[Mapping[str, float | int]], threads: int, gpus: float | int) -> tuple[int, int]:
    """Returns the processors that an actor takes, and how many actors the nodes have room for.

    Example:
        >>> _room([{"CPU": 8}, {"CPU": 3}], threads=4, gpus=0)
        (4, 2)
        >>> _room([{"CPU": 2}], threads=4, gpus=0)
        (2, 1)
        >>> _room([{"CPU": 64, "GPU": 8}, {"CPU": 16}], threads=4, gpus=1)
        (1, 8)
    """
    most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    # More threads than a node has processors are slower and no less right; an actor that waits for them never starts.
    cpus = 1 if gpus else min(threads, most)
    if cpus < 1 or most < 1:
        raise OptionError("the Ray cluster has no processor: start its nodes with `ray start --num-cpus 1` or more")
    room = 0
    for node in nodes:
        here = int(node.get("CPU", 0)) // cpus
        room += min(here, int(node.get("GPU", 0) / gpus)) if gpus else here
    if room < 1:
        have = max((node.get("GPU", 0) for node in nodes), default=0)
        raise OptionError(
            f"each worker takes {gpus:g} GPU, and no node of the Ray cluster has more than {have:g}: start its nodes "
            'with `ray start --num-gpus`, or load the model with device="cpu"'
        )
    return cpus, room
