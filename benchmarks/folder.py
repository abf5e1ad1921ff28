"""A folder explained and saved, end to end, beside the limit: the plain model's forward and activation-only backward.

The limit has its images decoded and in batches; the folder run reads JPEG files, preprocesses, explains, and writes an
overlay and a map of each. `maps alone` is `vitrail.explain` on the decoded batches: what is between it and the folder
run is reading and writing. All are timed in turn in every round, the limit before and after the others, after the
model has been loaded and everything has run once on the images that are decoded; rates are in images per second, and a
share is the median over rounds of the row's rate divided by the limit's in the same round. The share in processor time
counts the work of all threads: on a machine that others use too, where a run of several threads waits for them, it is
the steadier figure. The peak is that of resident memory beyond what was held when the row began.

    python -m benchmarks.folder                                            # ViT-B/16, random weights, generated photos
    python -m benchmarks.folder --model timm/vit_tiny_patch16_224 --checkpoint w.safetensors --images photos/
    python -m benchmarks.folder --count 10000 --rounds 1                   # where photos are fewer they come again
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

import vitrail
from vitrail.benchmark.measure import describe_machine, peak_memory, reset_peak_memory, synchroniser
from vitrail.benchmark.subject import limit
from vitrail.bestiary import render, sample_scene
from vitrail.cli import explain
from vitrail.cli.image_run import Request
from vitrail.images import SUFFIXES, read_image


def generated(folder: Path, count: int) -> None:
    """Scenes of the built-in world as photographs of 500 × 375 pixels, with the grain that a camera gives."""
    generator = np.random.default_rng(0)
    for number in range(count):
        scene = Image.fromarray(render(sample_scene("pair", seed=number), 96).image)
        pixels = np.asarray(scene.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.float32)
        pixels += generator.normal(scale=8, size=pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=92)


def chosen(folder: Path, source: Path, count: int) -> None:
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    copies: dict[Path, Path] = {}
    for number, path in zip(range(count), cycle(found), strict=False):
        photograph = folder / f"{number:05}{path.suffix}"
        # A second name of the same bytes: a link by name would be taken for the photograph that it leads to.
        if path in copies:
            photograph.hardlink_to(copies[path])
        else:
            copies[path] = photograph
            shutil.copyfile(path, photograph)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_base_patch16_224")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--images", type=Path, help="a folder of photographs; default: generated ones")
    parser.add_argument("--count", type=int, default=64, help="images of the folder run")
    parser.add_argument("--decoded", type=int, default=64, help="how many of them are decoded for the other rows")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="complete")
    parser.add_argument("--gradient", default="full", help="auto asks some images more than once, and libra all")
    parser.add_argument("--format", nargs="+", default=["overlay", "safetensors"], help="of the folder run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        photographs, output = work / "photographs", work / "out"
        photographs.mkdir()
        if options.images is None:
            generated(photographs, options.count)
        else:
            chosen(photographs, options.images, options.count)
        checkpoint = options.checkpoint
        if checkpoint is None:
            torch.manual_seed(0)
            checkpoint = work / "random.safetensors"
            save_file(timm.create_model(options.model.removeprefix("timm/")).state_dict(), checkpoint)
        dtype = getattr(torch, options.dtype)
        model = vitrail.load(options.model, checkpoint=checkpoint, device=options.device, dtype=dtype)
        measure(options, model, photographs, output)


@dataclass
class Taken:
    """What one run of one row took, for each of its images."""

    seconds: float
    worked: float
    peak: int


def measure(options: argparse.Namespace, model: vitrail.VisionModel, photographs: Path, output: Path) -> None:
    few = photographs.with_name("few")
    few.mkdir()
    for path in sorted(photographs.iterdir())[: options.decoded]:
        (few / path.name).hardlink_to(path)
    some = sorted(few.iterdir())
    assert model.preprocess is not None
    decoded = [model.preprocess(read_image(path)) for path in some]
    batches = [torch.stack(decoded[i : i + options.batch]) for i in range(0, len(some), options.batch)]
    batches = [batch.to(model.device, model.dtype) for batch in batches]
    plain = timm.create_model(options.model.removeprefix("timm/")).eval().requires_grad_(False)
    assert isinstance(plain, VisionTransformer)
    plain.load_state_dict(model.module.state_dict())
    plain.to(model.device, model.dtype)
    question = {"method": options.method, "gradient": options.gradient}
    request = Request(
        images=[],
        model=options.model,
        checkpoint=None,
        targets=[],
        against=[],
        question={**question, "objective": None, "start_layer": None, "centred": False, "readout": None},
        options={},
        load={},
        batch_size=options.batch,
        output=output,
        formats=tuple(options.format),
        as_json=True,
        seed=None,
    )
    explain.load_model = lambda _: model  # loaded once, before the clock starts

    def bare(_: Path) -> None:
        for batch in batches:
            limit(plain, batch, torch.zeros(len(batch), dtype=torch.long, device=batch.device))

    def maps(_: Path) -> None:
        for batch in batches:
            vitrail.explain(model, batch, batch_size=options.batch, **question)

    def folder(images: Path) -> None:
        asked = replace(request, images=[str(images)])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            failed = explain.run(asked)
        assert not failed
        assert len(list(output.iterdir())) == len(list(images.iterdir())) * len(options.format)

    order = [("limit", bare, few), ("maps alone", maps, few), ("folder, end to end", folder, photographs)]
    order.append(order[0])
    taken: dict[str, list[Taken]] = {row: [] for row, _, _ in order}
    shares: dict[str, list[tuple[float, float]]] = {row: [] for row in taken}
    for _, run, _ in order[:-1]:
        shutil.rmtree(output, ignore_errors=True)
        run(few)
    for _ in range(options.rounds):
        round_: dict[str, list[Taken]] = {row: [] for row in taken}
        for row, run, images in order:
            shutil.rmtree(output, ignore_errors=True)
            round_[row].append(timed(partial(run, images), len(list(images.iterdir())), options.device))
        of_limit = round_["limit"]
        for row, runs in round_.items():
            taken[row] += runs
            wall = statistics.mean(run.seconds for run in of_limit) / statistics.mean(run.seconds for run in runs)
            work = statistics.mean(run.worked for run in of_limit) / statistics.mean(run.worked for run in runs)
            shares[row].append((wall, work))
    table = {
        row: {
            "images": len(list(images.iterdir())),
            "images per second": 1 / statistics.median(run.seconds for run in taken[row]),
            "share of the limit": statistics.median(wall for wall, _ in shares[row]),
            "in processor time": statistics.median(work for _, work in shares[row]),
            "peak, MiB": max(run.peak for run in taken[row]) / 2**20,
        }
        for row, _, images in order[:-1]
    }
    show(options, table, "×".join(map(str, batches[0].shape[-2:])))


def timed(run: Callable[[], None], images: int, device: str) -> Taken:
    held = reset_peak_memory(device)
    start, begun = time.perf_counter(), time.process_time()
    run()
    synchroniser(device)()
    seconds, worked = time.perf_counter() - start, time.process_time() - begun
    return Taken(seconds / images, worked / images, peak_memory(device) - held)


def show(options: argparse.Namespace, table: dict[str, dict[str, float]], size: str) -> None:
    shape = (
        f"{options.model}, {options.dtype}, {size} px, batches of {options.batch}, {options.method}, "
        f"{options.gradient} gradient, {' and '.join(options.format)}, {options.rounds} rounds after 1, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    if options.json:
        print(json.dumps({"machine": describe_machine(), "shape": shape, "rows": table}, indent=2))
        return
    columns = list(next(iter(table.values())))
    print(f"{describe_machine()}\n{shape}\n\n| row | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for row, found in table.items():
        rate, wall, work = (found[column] for column in columns[1:4])
        print(f"| {row} | {found['images']:,} | {rate:.2f} | {wall:.1%} | {work:.1%} | {found['peak, MiB']:.0f} |")


if __name__ == "__main__":
    main()
