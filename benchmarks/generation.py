"""What an explanation of generated words costs: passes, time for each word, and peak memory against the sequence.

Time: rounds in which each row runs once, in seconds of the processor, so that other work on the machine does not count.
The cost of a word is the time of nine words less that of one, divided by eight: all share one forward pass. The limit
is the same of the plain model: one backward pass of activations alone for each word, down to the tower's first tokens
(by patches) or the text model's (by tokens). A figure is the median over rounds of a row's cost divided by its limit's
in the same round. Memory: the most bytes of tensors held at once beyond
weights and inputs, for one word of a sequence of that length, at a tiny width.

    python -m benchmarks.generation                          # 12 layers of 384, 576 image tokens
    python -m benchmarks.generation --rounds 0 --lengths 512,1024,2048,4096
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vitrail
from benchmarks.pyramids import held
from vitrail.benchmark.measure import describe_machine, describe_versions, interleave, ratio
from vitrail.benchmark.peaks import fit_peaks

IMAGE, VOCABULARY, WORDS = 999, 1000, 9
MODES = ("full", "leaf", "libra")


class Passes:
    """A LLaVA with drawn weights, a sequence with one image, and the work of each row."""

    def __init__(self, width: int, layers: int, size: int, length: int) -> None:
        torch.manual_seed(0)
        tokens = (size // 14) ** 2
        shape: dict[str, Any] = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": max(2, width // 64),
        }
        vision = CLIPVisionConfig(**shape, intermediate_size=4 * width, image_size=size, patch_size=14)
        text = LlamaConfig(
            **shape,
            num_key_value_heads=max(1, width // 128),
            intermediate_size=3 * width,
            vocab_size=VOCABULARY,
            max_position_embeddings=length,
        )
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
        self.module: Any = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
        words = torch.randint(3, IMAGE, (1, length - tokens))
        ids = torch.cat([torch.full((1, tokens), IMAGE), words], dim=1)
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.inputs["pixel_values"] = torch.randn(1, 3, size, size)
        self.ids = ids[0]

    def forward(self) -> Any:
        keep = torch.arange(len(self.ids) - WORDS - 1, len(self.ids) - 1)
        return self.module(**self.inputs, use_cache=False, logits_to_keep=keep).logits[0]

    def plain(self) -> None:
        with torch.no_grad():
            self.forward()

    def limit(self, words: int, vision: str) -> None:
        found: list[Tensor] = []

        def cut(_part: Any, _args: Any, output: Tensor) -> Tensor:
            found.append(output.detach().requires_grad_())
            return found[-1]

        tower = self.module.model.vision_tower
        part = tower.get_submodule("embeddings") if vision == "patches" else self.module.model.multi_modal_projector
        handle = part.register_forward_hook(cut)
        try:
            logits = self.forward()
        finally:
            handle.remove()
        for word in range(words):
            scalar = logits[word, self.ids[len(self.ids) - WORDS + word]]
            torch.autograd.grad(scalar, found, retain_graph=word + 1 < words)

    def explain(self, words: int, vision: Any, gradient: str) -> None:
        positions = range(len(self.ids) - WORDS, len(self.ids) - WORDS + words)
        vitrail.explain_generation(
            self.module, inputs=self.inputs, answer=WORDS, positions=positions, vision=vision, gradient=gradient
        )


def times(width: int, layers: int, size: int, length: int, rounds: int) -> None:
    passes = Passes(width, layers, size, length)
    count: list[int] = []
    handle = passes.module.register_forward_hook(lambda *_: count.append(1))
    passes.explain(1, "patches", "full")  # the first follows the tokens
    count.clear()
    passes.explain(WORDS, "patches", "full")
    handle.remove()
    print(f"{len(count)} forward pass for {WORDS} words")
    work: dict[str, Callable[[], None]] = {"plain forward": passes.plain}
    for vision in ("patches", "tokens"):
        for words in (1, WORDS):
            work[f"limit {vision} {words}"] = lambda words=words, vision=vision: passes.limit(words, vision)
            for mode in MODES:
                work[f"{mode} {vision} {words}"] = lambda words=words, vision=vision, mode=mode: passes.explain(
                    words, vision, mode
                )
    seconds = interleave(work, rounds=rounds, clock=time.process_time).seconds
    print(f"plain forward {statistics.median(seconds['plain forward']):.3f} s")
    print("\n| for one word | by patches, s | × limit | by tokens, s | × limit |\n|---|---|---|---|---|")

    def each(row: str, vision: str) -> list[float]:
        both = zip(seconds[f"{row} {vision} {WORDS}"], seconds[f"{row} {vision} 1"], strict=True)
        return [(many - one) / (WORDS - 1) for many, one in both]

    for row in ("limit", *MODES):
        cells = []
        for vision in ("patches", "tokens"):
            own = each(row, vision)
            cells += [f"{statistics.median(own):.3f}", str(ratio(own, each("limit", vision)))]
        print(f"| {row} | {' | '.join(cells)} |")


def memory(lengths: list[int]) -> None:
    print("\n| tokens | row | held, MiB | × limit |\n|---|---|---|---|")
    rows = ("limit", *MODES)
    found: dict[str, dict[int, int | None]] = {row: {} for row in rows}
    for length in lengths:
        passes = Passes(32, 2, 56, length)
        limit = 0
        for row in rows:
            if row == "limit":
                peak = limit = held(lambda passes=passes: passes.limit(1, "patches"))
            else:
                passes.explain(1, "patches", row)
                peak = held(lambda passes=passes, row=row: passes.explain(1, "patches", row))
            found[row][length] = peak
            print(f"| {length} | {row} | {peak / 2**20:.1f} | {peak / limit:.2f} |", flush=True)
    for row, peaks in found.items():
        if len(lengths) > 2 and (fit := fit_peaks(peaks)) is not None:
            print(f"{row}: {fit.quadratic_share:.0%} of the peak at the largest length grows with its square")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6, help="of the tower, and of the text model")
    parser.add_argument("--size", type=int, default=336, help="of the image, in pixels; patches have 14")
    parser.add_argument("--length", type=int, default=640, help="tokens of image, prompt and answer together")
    parser.add_argument("--rounds", type=int, default=5, help="0: memory alone")
    parser.add_argument("--lengths", default="512,1024,2048,4096", help="sequences whose peak is measured")
    options = parser.parse_args()
    print(f"{describe_machine()}, {describe_versions(('transformers',))}")
    if options.rounds:
        times(options.width, options.layers, options.size, options.length, options.rounds)
    if options.lengths:
        memory([int(one) for one in options.lengths.split(",")])


if __name__ == "__main__":
    main()
