"""Peak memory over the plain pass: it must grow with the tokens, not with their square.

Each figure is taken in a process of its own, in its first pass: the peak of resident memory, less what the process held
before. For Vitrail this includes the one look at the model by which it works out the tokens' layout.

    python benchmarks/memory.py                      # ViT-S/16 at 224, 512 and 1024 px, batch 1
"""

import argparse
import json
import subprocess
import sys

import timm
import torch
from environment import describe_machine, peak_memory, reset_peak_memory
from speed import limit
from stored_maps import StoredMaps
from timm.models.vision_transformer import VisionTransformer

import vitrail


def measure(name: str, model_name: str, size: int) -> int:
    """Bytes that one pass needs at its peak, beyond the weights and the images."""
    torch.manual_seed(0)
    module = timm.create_model(model_name, img_size=size).eval()
    images, targets = torch.randn(1, 3, size, size), torch.tensor([3])
    assert isinstance(module, VisionTransformer)
    stored_maps = StoredMaps(module) if name == "stored maps" else None
    if name == "plain":
        module.requires_grad_(False)
    model = vitrail.wrap(module)
    before = reset_peak_memory()
    if name == "plain":
        limit(module, images, targets)
    elif stored_maps is not None:
        stored_maps(images, targets, "gae")
    else:
        vitrail.explain(model, images, 3, method=name)
    return peak_memory() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1024])
    parser.add_argument("--rows", nargs="+", default=["plain", "complete", "gae", "absolute", "gmar_l2", "stored maps"])
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.model, int(options.one[1]))))
        return
    print(f"{describe_machine()}\n{options.model}, batch 1: MiB at the peak of one pass (times the plain pass)\n")
    print("| row | " + " | ".join(f"{size} px, {(size // 16) ** 2 + 1} tokens" for size in options.sizes) + " |")
    print("|---|" + "---|" * len(options.sizes))
    plain: dict[int, int] = {}
    for row in options.rows:
        cells = []
        for size in options.sizes:
            command = [sys.executable, __file__, "--model", options.model, "--one", row, str(size)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                cells.append("out of memory" if done.returncode < 0 or "memory" in done.stderr else "failed")
                continue
            peak = int(json.loads(done.stdout))
            plain.setdefault(size, peak)
            cells.append(f"{peak / 2**20:.0f} ({peak / plain[size]:.2f}×)")
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
