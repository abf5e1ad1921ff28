"""What half precision gains on this machine, and how far its maps are from those in float32.

Every row runs once in every round; `× float32` is the median over rounds of its time divided by that of the same row in
float32. The maps are compared image by image, for the classes that float32 predicts: Pearson's correlation with the
float32 map, the median over the images and the worst, and max|Δ| / max|float32 map|, the median and the worst. Half
precision can turn a prediction; so many images are printed.

    python -m benchmarks.precision                                                    # ViT-B/16, random weights, noise
    python -m benchmarks.precision --model timm/vit_tiny_patch16_224 --checkpoint w.safetensors --images photos/
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import timm
import torch
from jaxtyping import Float
from timm.data.config import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import vitrail
from vitrail.benchmark.measure import describe_machine, interleave, ratio, synchroniser
from vitrail.benchmark.subject import forward, limit
from vitrail.images import SUFFIXES, read_image

METHODS = ["complete", "gae", "absolute", "gmar_l2", "gradcam"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_base_patch16_224")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--images", type=Path, help="a folder of photographs; default: noise")
    parser.add_argument("--count", type=int, default=32, help="images whose maps are compared")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    vit = timm.create_model(options.model.removeprefix("timm/"))
    models: dict[str, vitrail.VisionModel] = {}
    for dtype in ["float32", *options.dtypes]:
        how = {"device": options.device, "dtype": getattr(torch, dtype)}
        if options.checkpoint is not None:
            models[dtype] = vitrail.load(options.model, checkpoint=options.checkpoint, **how)
        else:
            twin = timm.create_model(options.model.removeprefix("timm/")).eval()
            twin.load_state_dict(vit.state_dict())
            models[dtype] = vitrail.wrap(twin.to(**how))
    images = pictures(options, models["float32"])
    print(
        f"{describe_machine(options.device)}\n{options.model}, {len(images)} images in batches of {options.batch}, "
        f"{options.rounds} rounds after 1, load {os.getloadavg()[0]:.1f}\n"
    )
    times(options, models, images[: options.batch])
    maps(options, models, images)


def pictures(options: argparse.Namespace, model: vitrail.VisionModel) -> Float[Tensor, "images 3 height width"]:
    """Photographs as the model wants them, or noise of the model's size."""
    if options.images is None:
        return torch.randn(options.count, *resolve_model_data_config(model.module)["input_size"], device=options.device)
    found = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in SUFFIXES)[: options.count]
    assert model.preprocess is not None
    return torch.stack([model.preprocess(read_image(path)) for path in found]).to(options.device)


def times(
    options: argparse.Namespace, models: dict[str, vitrail.VisionModel], images: Float[Tensor, "batch 3 height width"]
) -> None:
    work: dict[str, Callable[[], object]] = {}
    targets = torch.zeros(len(images), dtype=torch.long, device=options.device)
    for dtype, model in models.items():
        batch = images.to(model.dtype)
        frozen = model.module.requires_grad_(False)
        assert isinstance(frozen, VisionTransformer)
        work[f"forward {dtype}"] = partial(forward, frozen, batch)
        work[f"limit {dtype}"] = partial(limit, frozen, batch, targets)
        for method in options.methods:
            work[f"{method} {dtype}"] = partial(vitrail.explain, model, batch, 0, method=method)
    found = interleave(work, rounds=options.rounds, synchronise=synchroniser(options.device)).seconds
    print("| row | dtype | seconds | × float32 | × limit of the same dtype |\n|---|---|---|---|---|")
    for row in ["forward", "limit", *options.methods]:
        for dtype in models:
            taken, before, least = (found[f"{a} {b}"] for a, b in [(row, dtype), (row, "float32"), ("limit", dtype)])
            seconds = sorted(taken)[len(taken) // 2]
            print(f"| {row} | {dtype} | {seconds:.3f} | {ratio(taken, before)} | {ratio(taken, least)} |")


def maps(
    options: argparse.Namespace, models: dict[str, vitrail.VisionModel], images: Float[Tensor, "images 3 height width"]
) -> None:
    with torch.no_grad():
        predicted = {dtype: classes(model, images, options.batch) for dtype, model in models.items()}
    targets = predicted["float32"]
    print(
        "\n| method | dtype | correlation, median | worst | max difference, median | worst |\n|---|---|---|---|---|---|"
    )
    for method in options.methods:
        exact, *others = (
            vitrail.explain(
                model,
                images.to(model.dtype),
                targets.tolist(),
                method=method,
                gradient="full",
                batch_size=options.batch,
            ).scores.double()
            for model in models.values()
        )
        for dtype, scores in zip(options.dtypes, others, strict=True):
            pairs = list(zip(exact.flatten(1), scores.flatten(1), strict=True))
            same = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
            apart = torch.stack([(ours - theirs).abs().max() / ours.abs().max() for ours, theirs in pairs])
            figures = f"{same.median():.4f} | {same.min():.4f} | {apart.median():.2%} | {apart.max():.2%}"
            print(f"| {method} | {dtype} | {figures} |")
    for dtype in options.dtypes:
        turned = int((predicted[dtype] != targets).sum())
        print(f"\n{dtype} predicts another class than float32 on {turned} of {len(images)} images.")


def classes(model: vitrail.VisionModel, images: Tensor, batch: int) -> Tensor:
    parts: Sequence[Tensor] = [model.logits(part.to(model.dtype)).argmax(1) for part in images.split(batch)]
    return torch.cat(list(parts))


if __name__ == "__main__":
    main()
