"""What every method costs, as a multiple of the plain model's forward and backward pass with parameter gradients.

One image, in float32; methods that compute by rules in float64 whatever the model's type stand beside the plain pass in
either type. Every round times each row once, in turn; a figure is the median over rounds of the row's time divided by
the plain pass's in the same round. Processor time, so that other programs on the machine count less. With `--tis` the
method `tis` is also held against 1024 masks put on pixels, scaled up from 128.

    python -m benchmarks.methods --checkpoint vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors
    python -m benchmarks.methods --methods tattr,gradcam --rounds 9
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import vitrail
from vitrail.benchmark.measure import describe_machine
from vitrail.benchmark.rows import as_published
from vitrail.methods.registry import choose_methods

# The multiple that a method is to stay under.
BARS = {"tattr": 3.5, "attn_lrp": 3.0, "tam": 8.0, "bi_head": 8.0, "bi_token": 8.0, "dix": 16.0, "iia": 30.0}
BARS |= dict.fromkeys(("gradcam", "gradcam_plus_plus", "xgradcam", "hirescam", "layercam", "eigencam"), 0.6)
SLOW = ("tis", "vit_cx", "attention_flow", "dave", "mda")  # timed once


def plain_pass(module: torch.nn.Module, image: Tensor, target: int) -> None:
    """One forward pass, and one backward pass down to all parameters."""
    for parameter in module.parameters():
        parameter.grad = None
    module(image)[0, target].backward()


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
            times.append(8 * seconds(lambda step=step: pixels(model, image, target, 128, step)))
        took.append(seconds(lambda: vitrail.explain(model, image, target, method="tis")))
    print(f"\ntis, 1024 masks: {statistics.median(took):.1f} s")
    for step, times in found.items():
        ratio = statistics.median(times) / statistics.median(took)
        print(f"1024 masks on pixels, {step} a batch: {statistics.median(times):.1f} s, {ratio:.2f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, help="without it the weights are random, which costs the same")
    parser.add_argument("--methods", default="all", help="names or groups, as for `vitrail compare`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tis", action="store_true", help="hold tis against masks on pixels")
    options = parser.parse_args()

    given: dict[str, Any] = {"pretrained": False} if options.checkpoint is None else {"checkpoint": options.checkpoint}
    model = vitrail.load(options.model, **given)
    double = copy.deepcopy(model.module).double()
    generator = torch.Generator().manual_seed(0)
    height, width = model.preprocess.size if model.preprocess is not None else (224, 224)
    image = torch.randn(1, 3, height, width, generator=generator)
    target = int(model.logits(image).argmax())
    infos = [one.info for one in choose_methods(options.methods)]

    def ask(name: str) -> None:
        vitrail.explain(model, image, target, method=name, **as_published(name))

    work: dict[str, Callable[[], object]] = {
        "plain, float32": lambda: plain_pass(model.module, image, target),
        "plain, float64": lambda: plain_pass(double, image.double(), target),
    }
    work |= {info.name: lambda name=info.name: ask(name) for info in infos if info.name not in SLOW}
    if any(info.name == "tattr" for info in infos):
        work["tattr, stabilised"] = lambda: vitrail.explain(
            model, image, target, method="tattr", precision="stabilised"
        )
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(options.rounds + 1):  # the first is warm-up
        for name, call in work.items():
            took = seconds(call)
            if number:
                times[name].append(took)
    for info in infos:
        if info.name in SLOW:
            times[info.name] = [seconds(lambda name=info.name: ask(name))] * options.rounds
    print(f"{describe_machine()}\n{model.name}, one image, {options.rounds} rounds\n")
    print("| method | passes | s | × plain, float32 | at most | × plain, float64 |\n|---|---|---|---|---|---|")
    passes = {info.name: info.passes for info in infos}
    for name, found in times.items():
        single, twice = (
            statistics.median(one / other for one, other in zip(found, times[plain], strict=True))
            for plain in ("plain, float32", "plain, float64")
        )
        bar = BARS.get(name)
        cells = (f"{statistics.median(found):.3f}", f"{single:.2f}", "" if bar is None else f"{bar:g}", f"{twice:.2f}")
        print(f"| {name} | {passes.get(name, '')} | " + " | ".join(cells) + " |")
    if options.tis:
        against_pixels(model, image, target)


if __name__ == "__main__":
    main()
