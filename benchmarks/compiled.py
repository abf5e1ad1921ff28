"""What `torch.compile` could gain: the limit (one forward and one activation-only backward) compiled, beside itself.

    python -m benchmarks.compiled                                   # ViT-B/16, batch 8
    python -m benchmarks.compiled --model vit_tiny_patch16_224 --batch 8 --rounds 7 [--device cuda] [--dtype bfloat16]

An explanation goes from attention to attention, and what happens there cannot be compiled from outside; so no option to
compile can gain more than a compiled model gains over itself. Each row runs once in every round; the ratio is the
median over rounds of its time divided by the limit's in the same round. Compiling is not counted, but printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import vitrail
from vitrail.benchmark.measure import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    vit = timm.create_model(options.model).eval().requires_grad_(False).to(options.device, dtype)
    assert isinstance(vit, VisionTransformer)
    size = resolve_model_data_config(vit)["input_size"]
    images = torch.randn(options.batch, *size, device=options.device, dtype=dtype)

    def after_patches(tokens: Tensor) -> Tensor:
        return vit.forward_head(vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(tokens)))))

    def limit(module: Callable[[Tensor], Tensor]) -> Tensor:
        tokens = vit.patch_embed(images).detach().requires_grad_()
        module(tokens)[:, 0].sum().backward()
        if options.device == "cuda":
            torch.cuda.synchronize()
        assert tokens.grad is not None
        return tokens.grad

    model = vitrail.wrap(vit)
    compiled = torch.compile(after_patches)
    begun = time.perf_counter()
    gradient = limit(compiled)
    took = time.perf_counter() - begun
    plain = limit(after_patches)
    apart = ((gradient - plain).abs().max() / plain.abs().max()).item()
    rows: dict[str, Callable[[], object]] = {
        "limit": lambda: limit(after_patches),
        "limit, compiled": lambda: limit(compiled),
        "vitrail complete": lambda: vitrail.explain(model, images, 0, gradient="full", batch_size=options.batch),
    }
    times: dict[str, list[float]] = {row: [] for row in rows}
    for number in range(1 + options.rounds):
        for row, run in rows.items():
            start = time.perf_counter()
            run()
            if number:
                times[row].append(time.perf_counter() - start)
    print(describe_machine())
    print(f"{options.model}, batch {options.batch}, {options.dtype}, {options.rounds} rounds after 1")
    print(f"compiled in {took:.0f} s; gradients agree to {apart:.0e}\n\n| row | seconds | × limit |\n|---|---|---|")
    for row, taken in times.items():
        ratio = statistics.median(own / other for own, other in zip(taken, times["limit"], strict=True))
        print(f"| {row} | {statistics.median(taken):.3f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
