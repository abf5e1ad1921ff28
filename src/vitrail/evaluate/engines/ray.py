"""Blocks on a Ray cluster: Ray Data's pool of actors, each with a model of its own; what a dying worker had is done
again."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import torch

from ...errors import OptionError
from ..rows import Done
from ..worker import Worker

__all__ = ["run_ray"]

READERS = 4


def run_ray(
    worker: Worker,
    blocks: Sequence[int],
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus: float | int | None = None,
) -> Iterator[Done]:
    """Measure the blocks in no particular order; their rows are those that the local engine gives.

    `address` of a running cluster ("auto" finds it), default: a Ray of this machine alone. `workers` actors at most,
    default: one per GPU, or one per processor's share of `threads`; `gpus` each, default one where the model is on a
    GPU. Every node must be able to read the data under the same path; only this process writes to the run's folder.

    Raises:
        OptionError: where Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError('engine="ray" needs Ray: pip install "vitrail[ray]"') from error
    if not blocks:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        on_gpu = worker.model.device.type == "cuda"
        each = (1 if on_gpu else 0) if gpus is None else gpus
        threads = worker.plan.threads
        resources = ray.cluster_resources()
        room = resources.get("GPU", 0) / each if each else resources.get("CPU", 1) / threads
        count = max(1, min(len(blocks), workers or int(room)))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # The model goes to each node once. Ray Data starts actors that died anew, and gives them their task again.
        model = ray.put(replace(worker.model, module=worker.model.module.cpu() if on_gpu else worker.model.module))
        numbers = ray.data.from_items([{"block": number} for number in blocks], override_num_blocks=len(blocks))
        done = numbers.map(
            cast("Any", _Measure),  # Ray's annotation knows functions alone
            fn_constructor_args=(model, worker.data, worker.plan, str(worker.model.device.type)),
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
            num_cpus=threads if not each else 1,
            num_gpus=each or None,
        )
        for row in done.iter_rows():
            yield Done(int(row["block"]), bytes(row["rows"]), bytes(row["maps"]) or None, int(row["images"]))
    finally:
        if started:
            ray.shutdown()


class _Measure:
    """An actor's work: the model and the data are opened once, then block after block is measured."""

    def __init__(self, model: Any, data: Any, plan: Any, device: str) -> None:
        import ray

        torch.set_num_threads(plan.threads)
        model = ray.get(model)
        if device == "cuda":
            model = replace(model, module=model.module.cuda())
        self.worker = Worker(model, data, plan)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        block = int(row["block"])
        with ThreadPoolExecutor(READERS) as pool:
            done = self.worker.measure(block, self.worker.read(block, pool))
        return {"block": block, "rows": done.rows, "maps": done.maps or b"", "images": done.images}
