"""A folder explained and saved, end to end, beside the limit: the plain model's forward and activation-only backward.

The limit has its images decoded and in batches; the folder run reads JPEG files, preprocesses, explains, and writes an
overlay and a map of each. Both are timed in turn in every round, after the model has been loaded; the ratio is the
median over rounds of the limit's time divided by the run's time in the same round. `maps alone` is `vitrail.explain` on
the decoded batches: what is between it and the folder run is reading and writing. The share in processor time counts
the work of all threads: on a machine that others use too, where a run of several threads waits for them, it is the
steadier figure.

    python benchmarks/folder.py                                            # ViT-B/16, random weights, generated photos
    python benchmarks/folder.py --model timm/vit_tiny_patch16_224 --checkpoint w.safetensors --images photos/
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
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

import vitrail
from vitrail.benchmark.machine import describe_machine
from vitrail.benchmark.plain import limit
from vitrail.bestiary import render, sample_scene
from vitrail.cli import explaining
from vitrail.cli.explain import Request
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
    for number, path in enumerate(found[:count]):
        (folder / f"{number:05}{path.suffix}").symlink_to(path.resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_base_patch16_224")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--images", type=Path, help="a folder of photographs; default: generated ones")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="complete")
    parser.add_argument("--gradient", default="full", help="auto asks some images more than once, and libra all")
    parser.add_argument("--format", nargs="+", default=["overlay", "safetensors"], help="of the folder run")
    parser.add_argument("--device", default="cpu")
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
        model = vitrail.load(options.model, checkpoint=checkpoint, device=options.device)
        measure(options, model, photographs, output)


def measure(options: argparse.Namespace, model: vitrail.VisionModel, photographs: Path, output: Path) -> None:
    files = sorted(photographs.iterdir())
    assert model.preprocess is not None
    decoded = [model.preprocess(read_image(path)) for path in files]
    batches = [torch.stack(decoded[i : i + options.batch]) for i in range(0, len(files), options.batch)]
    batches = [batch.to(model.device, model.dtype) for batch in batches]
    plain = timm.create_model(options.model.removeprefix("timm/")).eval().requires_grad_(False)
    assert isinstance(plain, VisionTransformer)
    plain.load_state_dict(model.module.state_dict())
    plain.to(model.device)
    question = {"method": options.method, "gradient": options.gradient}
    request = Request(
        images=[str(photographs)],
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
    explaining.load_model = lambda _: model  # loaded once, before the clock starts

    def bare() -> None:
        for batch in batches:
            limit(plain, batch, torch.zeros(len(batch), dtype=torch.long, device=batch.device))
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    def maps() -> None:
        for batch in batches:
            vitrail.explain(model, batch, batch_size=options.batch, **question)

    def folder() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            failed = explaining.run(request)
        assert not failed
        assert len(list(output.iterdir())) == len(files) * len(options.format)

    rows: dict[str, Callable[[], None]] = {"limit": bare, "maps alone": maps, "folder, end to end": folder}
    times: dict[str, list[float]] = {row: [] for row in rows}
    worked: dict[str, list[float]] = {row: [] for row in rows}
    for number in range(1 + options.rounds):
        for row, run in rows.items():
            shutil.rmtree(output, ignore_errors=True)
            start, begun = time.perf_counter(), time.process_time()
            run()
            if number:
                times[row].append(time.perf_counter() - start)
                worked[row].append(time.process_time() - begun)
    table = {
        row: {
            "images per second": len(files) / statistics.median(taken),
            "share of the limit": statistics.median(b / t for b, t in zip(times["limit"], taken, strict=True)),
            "in processor time": statistics.median(b / t for b, t in zip(worked["limit"], worked[row], strict=True)),
        }
        for row, taken in times.items()
    }
    size = "×".join(map(str, batches[0].shape[-2:]))
    shape = (
        f"{options.model}, {size} px, {len(files)} images in batches of {options.batch}, {options.method}, "
        f"{options.gradient} gradient, {' and '.join(options.format)}, {options.rounds} rounds after 1, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    if options.json:
        print(json.dumps({"machine": describe_machine(), "shape": shape, "rows": table}, indent=2))
        return
    print(f"{describe_machine()}\n{shape}\n\n| row | images per second | share of the limit | in processor time |")
    print("|---|---|---|---|")
    for row, found in table.items():
        shares = f"{found['share of the limit']:.1%} | {found['in processor time']:.1%}"
        print(f"| {row} | {found['images per second']:.2f} | {shares} |")


if __name__ == "__main__":
    main()
