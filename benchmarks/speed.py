"""How near the gradient methods come to the limit: one forward and one activation-only backward of the plain model.

Every round times each row once, in turn, so that a machine that slows down slows all rows alike; the ratio of a row is
the median over rounds of its time divided by the limit's time in the same round.

    python benchmarks/speed.py                       # ViT-B/16, 224 px, batch 8
    python benchmarks/speed.py --model vit_small_patch16_224 --batch 4 --rounds 9
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import timm
import torch
from environment import describe_machine
from stored_maps import StoredMaps
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import vitrail


def limit(model: VisionTransformer, images: Tensor, targets: Tensor) -> None:
    """The plain model with fused attention, forward and backward to the first block's input; no weight gradients."""
    handle = model.patch_embed.register_forward_hook(lambda *args: args[-1].detach().requires_grad_())
    try:
        logits = model(images)
    finally:
        handle.remove()
    logits.gather(1, targets[:, None]).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--methods", default="complete,gae,absolute,gmar_l1,gmar_l2")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    options = parser.parse_args()

    torch.manual_seed(0)
    plain = timm.create_model(options.model).eval()
    assert isinstance(plain, VisionTransformer)
    size = plain.patch_embed.img_size
    assert size is not None
    images = torch.randn(options.batch, 3, *size)
    targets = torch.arange(options.batch)
    stored_maps = StoredMaps(copy.deepcopy(plain))
    frozen = copy.deepcopy(plain).requires_grad_(False)
    model = vitrail.wrap(plain)

    def forward() -> None:
        with torch.no_grad():
            plain(images)

    def ours(method: str) -> Callable[[], object]:
        return lambda: vitrail.explain(model, images, targets.tolist(), method=method)

    rows: dict[str, Callable[[], object]] = {
        "plain forward": forward,
        "limit: forward + activation-only backward": lambda: limit(frozen, images, targets),
        **{f"vitrail {method}": ours(method) for method in options.methods.split(",")},
        "stored maps, gae, weight gradients": lambda: stored_maps(images, targets, "gae"),
        "stored maps, complete, weight gradients": lambda: stored_maps(images, targets, "complete"),
    }
    ours_complete = vitrail.explain(model, images, targets.tolist()).scores.flatten(1)
    theirs = stored_maps(images, targets, "complete")
    difference = float((ours_complete - theirs).abs().max() / theirs.abs().max())

    times: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(options.warmup + options.rounds):
        for name, run in rows.items():
            start = time.perf_counter()
            run()
            if number >= options.warmup:
                times[name].append(time.perf_counter() - start)
    base = times["limit: forward + activation-only backward"]
    slow = times["stored maps, gae, weight gradients"]
    table = {
        name: {
            "seconds": statistics.median(taken),
            "over limit": statistics.median(t / b for t, b in zip(taken, base, strict=True)),
            "faster than stored gae": statistics.median(s / t for t, s in zip(taken, slow, strict=True)),
        }
        for name, taken in times.items()
    }
    rounds = f"{options.rounds} rounds after {options.warmup}"
    shape = f"{options.model}, batch {options.batch}, {size[0]}×{size[1]} px, {rounds}"
    if options.json:
        print(
            json.dumps(
                {"machine": describe_machine(), "shape": shape, "rows": table, "agreement": difference}, indent=2
            )
        )
        return
    print(f"{describe_machine()}\n{shape}; complete against stored maps: max|Δ|/max|ref| = {difference:.1e}\n")
    print(
        f"| {'row':<43} | seconds | × limit | × faster than stored gae |\n|{'-' * 45}|---------|---------|{'-' * 26}|"
    )
    for name, row in table.items():
        print(
            f"| {name:<43} | {row['seconds']:7.3f} | {row['over limit']:7.3f} | {row['faster than stored gae']:24.2f} |"
        )


if __name__ == "__main__":
    main()
