"""What `vitrail.plan` foretells beside what explaining then took: peak memory and time.

Each cell is a process of its own: it loads a model with random weights and explains one batch, whose peak of resident
memory, less what the process held before, and time stand beside what the plan says.

    python -m benchmarks.plan                                  # ViT-S/16 and ViT-B/16 at 224 and 512 px
"""

import argparse
import json
import subprocess
import sys
import time

import timm
import torch

import vitrail
from vitrail.benchmark.measure import describe_machine, peak_memory, reset_peak_memory


def measure(model_name: str, size: int, method: str, batch: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = vitrail.wrap(timm.create_model(model_name, img_size=size).eval())
    images = torch.randn(batch, 3, size, size)
    before = reset_peak_memory()
    start = time.perf_counter()
    vitrail.explain(model, images, 0, method=method, batch_size=batch)
    seconds = time.perf_counter() - start
    peak = peak_memory() - before
    # Afterwards: what a plan's own passes gave back, the process would still hold, and need no more of.
    plan = vitrail.plan(model, size=(size, size), method=method, batch=batch)
    return {"planned": plan.peak, "peak": peak, "planned seconds": plan.seconds, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--methods", nargs="+", default=["complete", "gae", "rollout"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        model, size, method, batch = options.one
        print(json.dumps(measure(model, int(size), method, int(batch))))
        return
    if not options.json:
        print(
            f"{describe_machine()}\n\n| model | pixels | method | batch | planned MiB | measured MiB "
            "| planned / measured | planned s | measured s |\n|---|---|---|---|---|---|---|---|---|"
        )
    rows = []
    for model in options.models:
        for size in options.sizes:
            for method in options.methods:
                for batch in options.batches:
                    asked = [model, str(size), method, str(batch)]
                    command = [sys.executable, "-m", "benchmarks.plan", "--one", *asked]
                    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                    rows.append({"model": model, "size": size, "method": method, "batch": batch, **found})
                    if not options.json:
                        print(
                            f"| {' | '.join(asked)} | {found['planned'] / 2**20:.0f} | {found['peak'] / 2**20:.0f} "
                            f"| {found['planned'] / found['peak']:.2f} | {found['planned seconds']:.2f} "
                            f"| {found['seconds']:.2f} |",
                            flush=True,
                        )
    if options.json:
        print(json.dumps({"machine": describe_machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
