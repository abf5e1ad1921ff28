"""How near the gradient methods come to the limit on an NVIDIA GPU, in half precision, and at 16 thousand tokens.

The limit is one forward and one activation-only backward of the plain model. Every round times each row once, in turn,
the GPU waited for before and after; a row's ratio is the median over rounds of its time divided by the limit's in the
same round. Memory is the allocator's peak of one pass beyond what was held before. "by blocks" is the same method
without the Triton kernel. Where there is no such GPU, it says so and measures nothing.

    python -m benchmarks.gpu                         # ViT-L/16, 384 px, bfloat16, batch 32; then 2048 px, batch 1
    python -m benchmarks.gpu --batch 8 --long 0      # without the long sequence
    python -m benchmarks.gpu --tiles                 # the kernel alone, cut in different ways
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

import vitrail
from vitrail.attention import differentiate, record
from vitrail.attention.calls import AttentionCall
from vitrail.benchmark.measure import describe_machine
from vitrail.benchmark.rows import as_published
from vitrail.benchmark.subject import limit

DEVICE = "cuda"
LIMIT = "limit: forward + activation-only backward"
GOALS = {"complete": 1.10, "gae": 1.20}
Rows = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch16_384")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--methods", default="complete,gae,absolute,gmar_l2")
    parser.add_argument("--long", type=int, default=2048, help="side of the large picture in pixels; 0: none")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--tiles", action="store_true", help="time the kernel alone, cut in different ways")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return
    dtype = getattr(torch, options.dtype)
    methods = options.methods.split(",")
    rounds = options.rounds, options.warmup
    document: dict[str, object] = {"machine": f"{torch.cuda.get_device_name()}; {describe_machine()}"}
    if options.tiles:
        document["tiles"] = compare_tiles(options.batch, dtype)
    else:
        document["batch"] = measure(options.model, None, options.batch, dtype, methods, rounds, blocks=True)
        if options.long:
            # By blocks the long sequence takes minutes.
            document["long"] = measure(options.model, options.long, 1, dtype, methods, (3, 1), blocks=False)
    if options.json:
        print(json.dumps(document, indent=2))
        return
    print(document.pop("machine"))
    for table in document.values():
        assert isinstance(table, dict)
        print_table(table)


def measure(
    name: str,
    size: int | None,
    batch: int,
    dtype: torch.dtype,
    methods: list[str],
    rounds: tuple[int, int],
    *,
    blocks: bool,
) -> dict[str, object]:
    """One table: seconds, times the limit and peak memory of the limit and of each method."""
    torch.manual_seed(0)
    plain = timm.create_model(name) if size is None else timm.create_model(name, img_size=size)
    assert isinstance(plain, VisionTransformer)
    side = plain.patch_embed.img_size
    assert side is not None
    plain.eval().to(DEVICE, dtype).requires_grad_(False)
    images = torch.randn(batch, 3, *side, device=DEVICE, dtype=dtype)
    targets = torch.arange(batch, device=DEVICE)
    model = vitrail.wrap(plain)

    def ours(method: str) -> Callable[[], vitrail.Explanation]:
        return lambda: vitrail.explain(model, images, targets.tolist(), method=method, **as_published(method))

    def forward() -> None:
        with torch.no_grad():
            plain(images)

    def by_blocks(method: str) -> Callable[[], vitrail.Explanation]:
        def run() -> vitrail.Explanation:
            with without_kernel():
                return ours(method)()

        return run

    rows: Rows = {"plain forward": forward, LIMIT: lambda: limit(plain, images, targets)}
    rows |= {f"vitrail {method}": ours(method) for method in methods}
    if blocks:
        rows["vitrail gae, by blocks"] = by_blocks("gae")
    tokens = plain.patch_embed.num_patches + plain.num_prefix_tokens
    heads = int(vars(plain.get_submodule("blocks.0.attn"))["num_heads"])
    call = a_call(batch, heads, tokens, plain.embed_dim // heads, dtype)
    table: dict[str, object] = {
        "shape": f"{name}, {side[0]}×{side[1]} px, {tokens} tokens, batch {batch}, {dtype}, {rounds[0]} rounds "
        f"after {rounds[1]}",
        "fused attention": fused_backward_of(call),
        "rows": time_rows(rows, *rounds),
        "kernel": time_kernel(call, len(plain.blocks)),
    }
    if blocks:
        ours_scores, theirs = ours("gae")().scores, by_blocks("gae")().scores
        table["gae, kernel against blocks, max|Δ|/max|ref|"] = float(
            (ours_scores - theirs).abs().max() / theirs.abs().max()
        )
    return table


def time_rows(rows: Rows, rounds: int, warmup: int) -> dict[str, dict[str, float]]:
    """Median seconds, median ratio to the limit, and peak MiB of one pass, by row."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    peaks: dict[str, float] = {}
    for number in range(warmup + rounds):
        for name, run in rows.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if number >= warmup:
                times[name].append(time.perf_counter() - start)
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    base = times[LIMIT]
    return {
        name: {
            "seconds": statistics.median(taken),
            "over limit": statistics.median(t / b for t, b in zip(taken, base, strict=True)),
            "peak MiB": peaks[name],
            "memory over limit": peaks[name] / peaks[LIMIT],
        }
        for name, taken in times.items()
    }


@contextmanager
def without_kernel() -> Iterator[None]:
    with (
        mock.patch.object(differentiate, "tiles_fit", return_value=False),
        mock.patch.object(record, "tiles_fit", return_value=False),
    ):
        yield


def a_call(images: int, heads: int, tokens: int, width: int, dtype: torch.dtype) -> AttentionCall:
    """Random queries, keys and values laid out as a model's one projection leaves them."""
    qkv = torch.randn(images, tokens, 3, heads, width, device=DEVICE, dtype=dtype).permute(2, 0, 3, 1, 4)
    return AttentionCall(qkv[0], qkv[1], qkv[2], None, False, width**-0.5)


def fused_backward_of(call: AttentionCall) -> str:
    """The node of autograd's graph that tells which fused kernel PyTorch has chosen."""
    value = call.value.detach().requires_grad_()
    node = F.scaled_dot_product_attention(call.query, call.key, value).grad_fn
    return "none" if node is None else node.name()


def time_kernel(call: AttentionCall, layers: int, cut: object = None) -> dict[str, float] | str:
    """The kernel for one layer by itself: milliseconds, TFLOP/s, and seconds for all layers of the model."""
    try:
        from vitrail.attention.triton_row import Tiling, logsumexp_of_scores, sums_over_queries
    except ImportError as error:
        return str(error)
    assert cut is None or isinstance(cut, Tiling)
    upstream, row = torch.randn_like(call.query), torch.rand(call.images, call.queries, device=DEVICE)
    logsumexp = logsumexp_of_scores(call)
    taken = []
    for _ in range(25):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        sums_over_queries(call, "positive", upstream, row, logsumexp, cut=cut)
        stop.record()
        stop.synchronize()
        taken.append(start.elapsed_time(stop))
    milliseconds = statistics.median(taken[5:])
    operations = 4 * call.images * call.heads * call.queries * call.keys * call.query.shape[-1]
    return {
        "milliseconds": milliseconds,
        "TFLOP/s": operations / milliseconds / 1e9,
        "seconds for all layers": milliseconds * layers / 1e3,
    }


def compare_tiles(batch: int, dtype: torch.dtype) -> dict[str, object]:
    """The kernel at ViT-L/16's shape at 384 px, cut in many ways."""
    from vitrail.attention.triton_row import Tiling

    call = a_call(batch, 16, 577, 64, dtype)
    cuts = [
        Tiling(keys, queries, warps, stages)
        for keys in (64, 128)
        for queries in (32, 64, 128)
        for warps in (4, 8)
        for stages in (2, 3, 4)
    ]
    table: dict[str, object] = {"shape": f"16 heads of 64, 577 tokens, batch {batch}, {dtype}"}
    for cut in cuts:
        try:
            table[str(cut)] = time_kernel(call, 24, cut)
        except Exception as error:  # one that needs more shared memory than there is
            table[str(cut)] = f"{type(error).__name__}: {error}"
    return table


def print_table(table: dict[str, object]) -> None:
    print()
    rows = table.pop("rows", {})
    for name, value in table.items():
        print(f"{name}: {value}")
    if not isinstance(rows, dict) or not rows:
        return
    print("\n| row | seconds | × limit | peak MiB | × limit's peak | goal |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        goal = GOALS.get(name.removeprefix("vitrail "))
        said = "" if goal is None else f"≤ {goal:.2f}: {'met' if row['over limit'] <= goal else 'missed'}"
        print(
            f"| {name} | {row['seconds']:.4f} | {row['over limit']:.3f} | {row['peak MiB']:.0f} "
            f"| {row['memory over limit']:.2f} | {said} |"
        )


if __name__ == "__main__":
    main()
