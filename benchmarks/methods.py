"""What every method costs: time as a multiple of the plain model's forward and backward pass with parameter gradients,
and the peak of memory.

One image of noise, in float32 and each method as it is asked by default (`complete` with rival classes in the image);
other packages' maps, where these are installed, as `benchmarks.leaderboard` asks for them. Methods that compute by
rules in float64 whatever the model's type stand beside the plain pass in either type. Every round times each row
once, in turn; a figure is the median over rounds of the row's time divided by the plain pass's in the same round.
Processor time, so that other programs on the machine count less. Memory is the peak of resident memory beyond weights
and image, each row in a process of its own, with the look at the model that finds its layout. With `--tis` the method
`tis` is also held against 1024 masks put on pixels, scaled up from 128.

    python -m benchmarks.methods --checkpoint vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors
    python -m benchmarks.methods --methods tattr,gradcam,complete:full --rounds 9
"""

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import vitrail
from vitrail.benchmark.measure import describe_machine
from vitrail.benchmark.peaks import peak_here
from vitrail.benchmark.rows import Row
from vitrail.benchmark.subject import Case, Subject
from vitrail.errors import NoSignalError
from vitrail.methods.registry import Chosen, choose_methods

from .leaderboard import PEERS, installed

# The multiple that a method is to stay under.
BARS = {"tattr": 3.5, "attn_lrp": 3.0, "tam": 8.0, "bi_head": 8.0, "bi_token": 8.0, "dix": 16.0, "iia": 30.0}
BARS |= dict.fromkeys(("gradcam", "gradcam_plus_plus", "xgradcam", "hirescam", "layercam", "eigencam"), 0.6)
SLOW = ("tis", "vit_cx", "attention_flow", "caap", "dave", "mda")  # timed once
PLAIN = "plain"


def plain_pass(module: torch.nn.Module, image: Tensor, target: int) -> None:
    """One forward pass, and one backward pass down to all parameters."""
    for parameter in module.parameters():
        parameter.grad = None
    module(image)[0, target].backward()


def work_of(label: str, model: vitrail.VisionModel, image: Tensor, target: int) -> Callable[[], object]:
    """What one row does: the plain pass, a method with or without its gradient mode, or another package's map."""
    if label == PLAIN:
        return lambda: plain_pass(model.module, image, target)
    if label in PEERS:
        return lambda: PEERS[label](model.module, image.clone(), target)
    name, _, gradient = label.partition(":")

    def explain() -> None:
        with suppress(NoSignalError):  # of noise a clamp may leave nothing, which is found out at the end
            vitrail.explain(model, image, target, method=name, gradient=gradient or None)

    return explain


def peak(label: str, case: Case, weights: dict[str, Any] | None) -> int | None:
    """Bytes at the peak of one row's work, in this process, which has done nothing else."""
    torch.set_num_threads(1)

    def row(subject: Subject) -> Row:
        return Row(label, work=work_of(label, subject.model, subject.images, int(subject.targets[0])))

    return peak_here(case, row, weights=weights)[0]


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def pixels(model: vitrail.VisionModel, image: Tensor, target: int, masks: int, step: int) -> None:
    """The class's probability under masks of 14 × 14 on the pixels, half of the patches kept."""
    kept = (torch.rand(masks, 1, 14, 14) > 0.5).float()
    for part in kept.split(step):
        model.logits(image * interpolate(part, size=image.shape[-2:])).softmax(dim=1)[:, target]


def against_pixels(model: vitrail.VisionModel, image: Tensor, target: int) -> None:
    """`tis` with 1024 masks beside masked pixels, before and after."""
    found: dict[int, list[float]] = {32: [], 128: []}
    pixels(model, image, target, 16, 16)
    took = []
    for _ in range(2):
        for step, times in found.items():
            times.append(8 * seconds(partial(pixels, model, image, target, 128, step)))
        took.append(seconds(work_of("tis", model, image, target)))
    print(f"\ntis, 1024 masks: {statistics.median(took):.1f} s")
    for step, times in found.items():
        ratio = statistics.median(times) / statistics.median(took)
        print(f"1024 masks on pixels, {step} a batch: {statistics.median(times):.1f} s, {ratio:.2f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, help="without it the weights are random, which costs the same")
    parser.add_argument("--methods", default="all", help="names, groups and gradient modes, as for `vitrail compare`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="do not start a process for each row")
    parser.add_argument("--tis", action="store_true", help="hold tis against masks on pixels")
    options = parser.parse_args()

    torch.set_num_threads(1)
    given: dict[str, Any] = {"pretrained": False} if options.checkpoint is None else {"checkpoint": options.checkpoint}
    model = vitrail.load(options.model, **given)
    double = copy.deepcopy(model.module).double()
    generator = torch.Generator().manual_seed(0)
    height, width = model.preprocess.size if model.preprocess is not None else (224, 224)
    image = torch.randn(1, 3, height, width, generator=generator)
    target = int(model.logits(image).argmax())
    chosen: dict[str, Chosen] = {one.label: one for one in choose_methods(options.methods)}
    # HiLRP is asked in another process, whose time and memory are not seen from here.
    labels = [PLAIN, *chosen, *(name for name in installed() if name != "peer_hilrp")]

    work = {label: work_of(label, model, image, target) for label in labels}
    work["plain, float64"] = lambda: plain_pass(double, image.double(), target)
    if "tattr" in chosen:
        work["tattr, stabilised"] = lambda: vitrail.explain(
            model, image, target, method="tattr", precision="stabilised"
        )
    times: dict[str, list[float]] = {label: [] for label in work}
    for number in range(options.rounds + 1):  # the first is warm-up
        for label, call in work.items():
            if label not in SLOW:
                took = seconds(call)
                if number:
                    times[label].append(took)
    for label in work.keys() & {*SLOW}:
        times[label] = [seconds(work[label])] * options.rounds

    peaks: dict[str, int | None] = {}
    if not options.no_memory:
        case = Case(options.model.removeprefix("timm/"), height, 1)
        spawned = multiprocessing.get_context("spawn")
        for label in labels:
            with ProcessPoolExecutor(1, mp_context=spawned) as pool:
                peaks[label] = pool.submit(peak, label, case, None if options.checkpoint is None else given).result()

    print(f"{describe_machine()}\n{model.name}, one image, {options.rounds} rounds\n")
    print("| row | passes | s | × plain | at most | × plain, float64 | MB |\n|---|---|---|---|---|---|---|")
    for label, found in times.items():
        single, twice = (
            statistics.median(one / other for one, other in zip(found, times[plain], strict=True))
            for plain in (PLAIN, "plain, float64")
        )
        bar, bytes_ = BARS.get(label), peaks.get(label)
        cells = (
            chosen[label].info.passes if label in chosen else "",
            f"{statistics.median(found):.3f}",
            f"{single:.2f}",
            "" if bar is None else f"{bar:g}",
            f"{twice:.2f}",
            "" if bytes_ is None else f"{bytes_ / 1e6:.0f}",
        )
        print(f"| {label} | {' | '.join(cells)} |")
    if options.tis:
        against_pixels(model, image, target)


if __name__ == "__main__":
    main()
