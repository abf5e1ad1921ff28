"""What an explanation of a model costs whose tokens are followed (Swin, PVT, …): time, peak memory, and their growth.

Time: rounds in which each row runs once; a figure is the median over rounds of a row's time divided by the limit's in
the same round. The limit is one forward pass and one backward pass of activations alone, down to the first tokens.
Memory: the most bytes of tensors that are held at once, as CUDA's allocator counts them, beyond weights and images; and
the peak of resident memory in a process of its own, in which the C library's free blocks count too. That of the first
map, in which the tokens are followed, once for a model and size, is in the last column.

    python -m benchmarks.pyramids                       # Swin-T at 224 px, batch 8
    python -m benchmarks.pyramids --sizes 224,448,672,1024 --batch 1 --rounds 0    # memory against tokens
    python -m benchmarks.pyramids --model pvt_v2_b1
"""

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import timm
import torch
from torch.profiler import ProfilerActivity, profile

import vitrail
from vitrail.benchmark.measure import describe_machine, interleave, peak_memory, ratio, reset_peak_memory
from vitrail.benchmark.peaks import fit_peaks
from vitrail.models.layout import layout_of

ROWS = ("plain forward", "limit", "complete, full gradient", "complete, default")


class Passes:
    """A model with drawn weights, some images, and the work of each row."""

    def __init__(self, name: str, size: int, batch: int) -> None:
        torch.manual_seed(0)
        options: dict[str, Any] = {"img_size": size} if "swin" in name else {}
        self.module = timm.create_model(name, **options).eval().requires_grad_(False)
        self.images = torch.randn(batch, 3, size, size)
        self.model = vitrail.wrap(self.module)

    def plain(self) -> None:
        with torch.no_grad():
            self.module(self.images)

    def limit(self) -> None:
        first = self.module.get_submodule("patch_embed")
        handle = first.register_forward_hook(lambda *call: cut(call[-1]))
        try:
            logits = self.module(self.images)
        finally:
            handle.remove()
        logits[:, 0].sum().backward()

    def complete(self, **question: Any) -> None:
        vitrail.explain(self.model, self.images, 0, method="complete", batch_size=len(self.images), **question)

    def row(self, name: str) -> Callable[[], None]:
        return {
            "plain forward": self.plain,
            "limit": self.limit,
            "complete, full gradient": lambda: self.complete(gradient="full"),
            "complete, default": self.complete,
        }[name]


def cut(found: Any) -> Any:
    """Begins the graph at the first tokens, also where the module gives its grid beside them."""
    if isinstance(found, tuple):
        return (cut(found[0]), *found[1:])
    return found.detach().requires_grad_()


def peak_here(answer: multiprocessing.Queue, threads: int, name: str, size: int, batch: int, row: str) -> None:
    torch.set_num_threads(threads)
    small = Passes(name, 224, 1)
    small.row(row)()  # loads the code
    del small
    passes = Passes(name, size, batch)
    resident = []
    for _ in range(2):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = reset_peak_memory()
        passes.row(row)()
        resident.append(peak_memory() - before)
    answer.put((held(passes.row(row)), resident[1], resident[0]))


def held(work: Callable[[], None]) -> int:
    """The most bytes of tensors made by `work` that are held at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    profiler: Any = seen.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def peaks(name: str, size: int, batch: int, row: str) -> tuple[int, int, int]:
    """Bytes held at the peak of a pass, resident ones, and those of the first pass, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=peak_here, args=(answer, torch.get_num_threads(), name, size, batch, row))
    process.start()
    found = answer.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="swin_tiny_patch4_window7_224")
    parser.add_argument("--sizes", default="224", help="in pixels, separated by commas; time is taken at the first")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7, help="0: memory alone")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    print(describe_machine())
    print(f"{options.model}, batch {options.batch}")
    if options.rounds:
        passes = Passes(options.model, sizes[0], options.batch)
        begun = time.perf_counter()
        layout_of(passes.model, passes.images, follow=True)
        print(f"tokens followed at {sizes[0]} px, once: {time.perf_counter() - begun:.1f} s")
        times = interleave({name: passes.row(name) for name in ROWS}, rounds=options.rounds, warmup=1).seconds
        print("\n| row | seconds | × limit |\n|---|---|---|")
        for name in ROWS:
            print(f"| {name} | {statistics.median(times[name]):.3f} | {ratio(times[name], times['limit'])} |")
        del passes
    print("\n| px | row | held, MiB | × limit | resident, MiB | first map, MiB |\n|---|---|---|---|---|---|")
    of_row: dict[str, dict[int, int | None]] = {name: {} for name in ROWS[1:]}
    for size in sizes:
        limit = 0
        for name, found in of_row.items():
            tensors, resident, first = peaks(options.model, size, options.batch, name)
            limit = limit or tensors
            found[(size // 4) ** 2] = tensors
            sizes_of = f"{tensors / 2**20:.0f} | {tensors / limit:.2f} | {resident / 2**20:.0f} | {first / 2**20:.0f}"
            print(f"| {size} | {name} | {sizes_of} |", flush=True)
    if len(sizes) > 2:
        for name, found in of_row.items():
            if (fit := fit_peaks(found)) is not None:
                print(f"{name}: {fit.quadratic_share:.0%} of the peak at the largest size grows with tokens squared")


if __name__ == "__main__":
    main()
