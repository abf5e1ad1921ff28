"""What a captioner's words are due to: maps of generated tokens against causal truth, and hallucinated words.

The model is the bestiary's captioner (`vitrail.bestiary.captioner`). Four parts:

- **accuracy**: words of greedy answers on held-out scenes that are right.
- **truth** (`--part choose` on other seeds, `--part judge` on the held-out ones): words are explained, and the maps
  held against what the word's logit loses when a creature, or a part, is not drawn. Three kinds of question:
  *captions* of pairs, each content word by itself; *chimeras*, the trait and the name of one sibling against the
  other's in a creature that is half each; *presence*, "no" against "yes" when a sibling of what is there is asked for.
  *rank*: Spearman correlation of part scores with the parts' effects. *pointing*: whether the highest patch lies on the
  creature with the largest effect. *sign* in captions, where next to nothing argues against a word: positive share of
  the relevance on the creatures whose effect is half a logit or more; elsewhere: whether the score of a part has the
  sign of its effect, the mean of the parts that argue for and of those that argue against (effects of half a logit or
  more; 0.5 for a map without signs, and for chance).
- **grounding**: whether the image's share tells names that are due to the picture from those that follow from the trait
  before them (only a murlo has a spiral shell).
- **hallucination**: content words of greedy captions, and of answers to "describe the X." where there is an X and where
  there is none; AUROC of telling the words that are not in the picture.

Rivals that Vitrail has not, as published:

- attention × gradient of all decoder layers, Σ_layers Σ_heads relu(∇A) ⊙ A at the row that predicts the word, which is
  vl-saliency's "gradcam" (github.com/alexander-brady/vl-saliency), and with σ(A) in A's place its "agcam", after Leem
  and Seo, AAAI 2024 (2402.04563).
- TAM (Li et al., ICCV 2025, 2506.23270): the word's logit at each image token, less what earlier words explain of it by
  least squares, weighted by the word's logit at their places; then the rank Gaussian filter. It knows no "against".

    python -m benchmarks.captioner --part judge --count 500 --output figures.csv
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitrail
from vitrail.benchmark.measure import describe_machine
from vitrail.bestiary import Scene, render
from vitrail.bestiary.benchmark import part_scores, part_sign
from vitrail.bestiary.captioner import VOCABULARY, CaptionTruth, caption_truth, load, prepare
from vitrail.bestiary.dialogues import HELD_OUT, TRAITS, Dialogue, ask, caption, held_out
from vitrail.bestiary.species import CLASS_NAMES, siblings
from vitrail.metrics.aggregation import bootstrap
from vitrail.metrics.localisation.pointing import highest_inside
from vitrail.metrics.maps import rank_correlation, spread
from vitrail.metrics.signs import positive_share

GRID, EFFECT = (12, 12), 0.5
Against = list[str] | None  # for each content word the word that it is asked against
Maps = Callable[[CaptionTruth, Against], Tensor]  # one map per content word
Asked = Iterator[tuple[CaptionTruth, Against]]
Figures = dict[str, dict[str, list[float]]]  # by map, by measure: one value per scene


# -- accuracy --------------------------------------------------------------------------------------------------------


def answers(model: Any, processor: Any, scenes: Sequence[Scene], said: Sequence[Dialogue]) -> Iterator[list[str]]:
    """The words of the greedy answers."""
    for scene, dialogue in zip(scenes, said, strict=True):
        inputs = prepare(processor, render(scene), dialogue, answered=False)
        with torch.no_grad():
            found = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        yield processor.decode(found, skip_special_tokens=True).split()


def accuracy(model: Any, processor: Any, count: int, seed: int) -> None:
    for kind in ("pair", "single"):
        scenes = held_out(kind, count, seed)
        for about in ("picture", "traits", "presence", "absence", "place", "neighbour"):
            if kind == "single" and about in ("place", "neighbour"):
                continue
            rng = np.random.default_rng(seed)
            names = [scene.labels[int(rng.integers(len(scene.labels)))] for scene in scenes]
            if about == "absence":
                names = [absent(scene, rng) for scene in scenes]
            said = [ask(s, "presence" if about == "absence" else about, n) for s, n in zip(scenes, names, strict=True)]
            right: dict[str, list[float]] = defaultdict(list)
            for dialogue, found in zip(said, answers(model, processor, scenes, said), strict=True):
                hits = [word.text == other for word, other in zip(dialogue.words, [*found, *[""] * 16], strict=False)]
                right["sentences"].append(float(dialogue.answer.split() == found))
                right["words"].append(float(np.mean(hits)))
                content = [hit for word, hit in zip(dialogue.words, hits, strict=True) if word.kind != "function"]
                right["content words"].append(float(np.mean(content)))
            print(kind, about, {name: _percent(values) for name, values in right.items()}, flush=True)


def _percent(values: Sequence[float]) -> str:
    mean, low, high, _ = bootstrap(values)
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def absent(scene: Scene, rng: np.random.Generator) -> str:
    """A creature that is not there, as often as not a sibling of one that is."""
    names = siblings(scene.labels[0]) if rng.uniform() < 0.5 else CLASS_NAMES
    return str(rng.choice([name for name in names if name not in scene.labels]))


# -- maps ------------------------------------------------------------------------------------------------------------


def ours(model: Any, method: str, vision: str, gradient: str | None = None) -> Maps:
    """Vitrail's own maps."""

    def maps(truth: CaptionTruth, against: Against) -> Tensor:
        options: dict[str, Any] = {"method": method, "vision": vision, "gradient": gradient}
        if against is not None and method not in ("raw", "rollout"):
            options["against"] = [VOCABULARY.index(word) for word in against]
        found = vitrail.explain_generation(model, inputs=dict(truth.inputs), positions=list(truth.positions), **options)
        return found.image_scores[0]

    return maps


def attention_times_gradient(eager: Any, sigmoid: bool) -> Maps:
    """Of vl-saliency, at the row that predicts the word, of the word's own logit or its lead over another."""

    def maps(truth: CaptionTruth, against: Against) -> Tensor:
        ids = truth.inputs["input_ids"]
        found = eager(**truth.inputs, output_attentions=True, use_cache=False)
        image = (ids[0] == eager.config.image_token_id).nonzero()[:, 0]
        every = []
        for number, place in enumerate(truth.positions):
            asked = found.logits[0, place - 1, ids[0, place]]
            if against is not None:
                asked = asked - found.logits[0, place - 1, VOCABULARY.index(against[number])]
            gradients = torch.autograd.grad(asked, found.attentions, retain_graph=True, allow_unused=True)
            total = torch.zeros(len(image))
            for layer, gradient in zip(found.attentions, gradients, strict=True):
                if gradient is not None:
                    weights = layer[0, :, place - 1, image].detach()
                    weights = weights.sigmoid() if sigmoid else weights
                    total += (gradient[0, :, place - 1, image].relu() * weights).sum(0)
            every.append(total.view(GRID))
        return torch.stack(every)

    return maps


def token_activation(model: Any) -> Maps:
    """TAM: activation of the word's logit, less the interference of earlier words, through the rank Gaussian filter."""

    def maps(truth: CaptionTruth, _: Against) -> Tensor:
        ids = truth.inputs["input_ids"][0]
        with torch.no_grad():
            logits = model(**truth.inputs, use_cache=False).logits[0].clamp(min=0).double().numpy()
        image = np.flatnonzero((ids == model.config.image_token_id).numpy())
        first, start = image[-1] + 1, truth.answer[0]
        # A word of the prompt stands for itself (the first one for what the model would say there); a word of the
        # answer for the position that predicts it.
        classes = [int(token) for token in ids[first:]]
        classes[0] = int(logits[first].argmax())
        places = [*range(first, start), *(place - 1 for place in truth.answer)]
        words = [int(token) for token in ids[first:]]
        activations = np.stack([logits[image, token] for token in classes])
        every = []
        for place in truth.positions:
            here = place - first
            earlier = [k for k in range(here) if words[k] != words[here]]
            weights = logits[[places[k] for k in earlier], classes[here]]
            interference = (activations[earlier] * (weights / (weights.sum() + 1e-8))[:, None]).sum(0)
            norm = interference @ interference
            scale = activations[here] @ interference / norm if norm > 0 else 0.0
            found = (activations[here] - scale * interference).clip(min=0)
            found = found - min(found.min(), logits[places[:here], classes[here]].min())
            every.append(torch.from_numpy(rank_gaussian(found.reshape(GRID))).float())
        return torch.stack(every)

    return maps


def rank_gaussian(scores: np.ndarray) -> np.ndarray:
    """The mean of a 3 × 3 window's sorted values under a Gaussian about the median's rank; its width is their
    coefficient of variation.
    """
    padded = np.pad(scores, 1, mode="reflect")
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*scores.shape, 9), axis=-1)
    mean = windows.mean(-1)
    width = windows.std(-1) / np.where(mean > 0, mean, 1)
    kernel = np.exp(-((np.arange(9) - 4) ** 2) / (2 * np.maximum(width, 1e-6)[..., None] ** 2))
    return np.where(mean > 0, (windows * kernel).sum(-1) / kernel.sum(-1), 0.0)


def causes(truth: CaptionTruth, against: Against) -> Tensor:
    """The truth itself as a map: each part's effect spread over its pixels. What the best method could get."""
    every = []
    for word in range(len(truth.content)):
        density = truth.part_effects(word, against[word] if against else None) / truth.masks.sum((1, 2))
        pixels = (truth.masks * density[:, None, None]).sum(0)
        every.append(torch.nn.functional.avg_pool2d(pixels[None], 8)[0])
    return torch.stack(every)


def noise(seed: int) -> Maps:
    generator = torch.Generator().manual_seed(seed)
    return lambda truth, _: torch.randn(len(truth.content), *GRID, generator=generator)


# -- truth -----------------------------------------------------------------------------------------------------------


def captions(model: Any, processor: Any, count: int, seed: int) -> Asked:
    for truth in caption_truth(model, processor, held_out("pair", count, seed)):
        yield truth, None


def chimeras(model: Any, processor: Any, count: int, seed: int) -> Asked:
    for scene in held_out("chimera", count, seed):
        first, second = (caption(scene, [name]) for name in scene.labels)
        pairs = list(zip(first.words, second.words, strict=False))
        # Only where both are a trait and a name, and the traits differ (a part may be what makes both).
        if len(first.words) == len(second.words) == 3 and all(a.text != b.text for a, b in pairs[1:]):
            (truth,) = caption_truth(model, processor, [scene], dialogue=lambda _, said=first: said)
            yield truth, [second.words[1].text, second.words[2].text]


def presences(model: Any, processor: Any, count: int, seed: int) -> Asked:
    for scene in held_out("pair", count, seed):
        missing = next((name for name in siblings(scene.labels[0]) if name not in scene.labels), None)
        if missing is not None:
            said = partial(ask, about="presence", name=missing)
            (truth,) = caption_truth(model, processor, [scene], dialogue=said)
            yield truth, ["yes"]


QUESTIONS = {"caption": captions, "chimera": chimeras, "presence": presences}


def measure(kind: str, truth: CaptionTruth, maps: Tensor, against: Against) -> dict[str, float]:
    """One value per measure and kind of word: the mean over the words of that kind."""
    values: dict[str, list[float]] = defaultdict(list)
    for word, scores in enumerate(maps):
        other = against[word] if against is not None else None
        pixels = spread(scores.detach().float(), (96, 96))
        creatures, parts = truth.creature_effects(word, other), truth.part_effects(word, other)
        on_parts = part_scores(pixels, truth.masks)
        if kind == "caption":
            shares = [
                positive_share(pixels, mask)
                for effect, mask in zip(creatures, truth.creatures, strict=True)
                if float(effect) >= EFFECT
            ]
            sign = float(np.nanmean(shares)) if shares and not np.isnan(shares).all() else np.nan
        else:
            sign = (part_sign(on_parts, (parts >= EFFECT).long()) + part_sign(on_parts, -(parts <= -EFFECT).long())) / 2
        name = f"{kind} {truth.dialogue.words[truth.content[word]].kind}" if kind != "presence" else kind
        values[f"{name} sign"].append(sign)
        values[f"{name} rank"].append(rank_correlation(on_parts, parts))
        if len(truth.creatures) > 1:
            values[f"{name} pointing"].append(highest_inside(pixels, truth.creatures[int(creatures.argmax())]))
    kept = {name: [value for value in several if not np.isnan(value)] for name, several in values.items()}
    return {name: float(np.mean(several)) if several else np.nan for name, several in kept.items()}


def judge(candidates: dict[str, Maps], asked: dict[str, Asked]) -> Iterator[Figures]:
    """Measures scene by scene, all kinds of question in turn; yields what there is after every 50 questions of each."""
    figures: Figures = {name: defaultdict(list) for name in candidates}
    left, done = dict(asked), 0
    while left:
        for kind, several in list(left.items()):
            one = next(several, None)
            if one is None:
                del left[kind]
                continue
            for name, maps in candidates.items():
                for measured, value in measure(kind, one[0], maps(*one), one[1]).items():
                    figures[name][measured].append(value)
        done += 1
        if done % 50 == 0 or not left:
            yield figures


def table(figures: Figures, kind: str) -> str:
    columns = dict.fromkeys(c for values in figures.values() for c in values if c.startswith(kind))
    counts = [len(next(iter(figures.values()))[c]) for c in columns]
    lines = [
        f"| map, {max(counts, default=0)} scenes | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, values in figures.items():
        lines.append(f"| {name} | " + " | ".join(str(bootstrap(values.get(c, ()))) for c in columns) + " |")
    return "\n".join(lines)


def compared(model: Any, eager: Any, seed: int, *, choose: bool) -> dict[str, Maps]:
    if choose:
        asked = [
            (m, v, g) for m in ("complete", "gae") for v in ("tokens", "patches") for g in ("full", "leaf", "libra")
        ]
        return {f"{method}, {mode}, {vision}": ours(model, method, vision, mode) for method, vision, mode in asked}
    return {
        "causes": causes,
        "random": noise(seed),
        "TAM": token_activation(model),
        "AGCAM": attention_times_gradient(eager, sigmoid=True),
        "attention × gradient": attention_times_gradient(eager, sigmoid=False),
        "raw": ours(model, "raw", "tokens"),
        "rollout, patches": ours(model, "rollout", "patches"),
        "gae, full, tokens": ours(model, "gae", "tokens", "full"),
        "gae, libra, patches": ours(model, "gae", "patches", "libra"),
        "complete, full, patches": ours(model, "complete", "patches", "full"),
        "complete, libra, tokens": ours(model, "complete", "tokens", "libra"),
        "complete, libra, patches": ours(model, "complete", "patches", "libra"),
    }


# -- grounding -------------------------------------------------------------------------------------------------------


def grounding(model: Any, processor: Any, count: int, seed: int, gradient: str) -> None:
    """How the image's share tells words that are due to the picture from words that follow from the words before."""
    effects, shares = [], []
    for truth in caption_truth(model, processor, held_out("pair", count, seed)):
        asked = {"inputs": dict(truth.inputs), "positions": list(truth.positions), "gradient": gradient}
        found = vitrail.explain_generation(model, **asked).grounding[:, 0]
        for word, place in enumerate(truth.content):
            said = truth.dialogue.words[place]
            if said.kind == "name":
                effects.append(float(truth.creature_effects(word)[said.creatures[0]]))
                shares.append(float(found[word]))
    effect, share = np.array(effects), np.array(shares)
    clear = (effect < EFFECT) | (effect >= 4 * EFFECT)
    print(f"names: {len(effect)}, due to the words before {(effect < EFFECT).sum()}, to the picture {sum(effect >= 2)}")
    rank = rank_correlation(torch.from_numpy(share), torch.from_numpy(effect))
    print(f"rank correlation of the image's share with the creature's effect {rank:.2f}")
    print(f"AUROC of telling the two {auroc_interval(effect[clear] < EFFECT, -share[clear], seed)}", flush=True)


# -- hallucination ---------------------------------------------------------------------------------------------------


def in_picture(scene: Scene, word: str) -> bool | None:
    """Whether a trait or name is to be seen in the scene; None for other words."""
    if word in CLASS_NAMES:
        return word in [creature.species for creature in scene.creatures]
    for (slot, variant), text in TRAITS.items():
        if text == word:
            return any(creature.parts.get(slot) == variant for creature in scene.creatures)
    return None


def hallucination(model: Any, processor: Any, count: int, seed: int, gradient: str) -> None:
    """AUROC of a low score for words that are not in the picture."""
    rng = np.random.default_rng(seed)
    scenes = held_out("pair", count, seed)
    sets = {
        "captions": [caption(scene) for scene in scenes],
        "described, there": [ask(scene, "traits", scene.labels[int(rng.integers(2))]) for scene in scenes],
        "described, not there": [Dialogue(f"describe the {absent(scene, rng)}.", ()) for scene in scenes],
    }
    rows: dict[str, list[tuple[bool, dict[str, float]]]] = defaultdict(list)
    for name, said in sets.items():
        for scene, dialogue, words in zip(scenes, said, answers(model, processor, scenes, said), strict=True):
            shown = [in_picture(scene, word) for word in words]
            if not any(one is not None for one in shown):
                continue
            inputs = prepare(processor, render(scene), dialogue, answered=False)
            ids = torch.cat([inputs["input_ids"], torch.tensor([[VOCABULARY.index(word) for word in words]])], dim=1)
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            start = ids.shape[1] - len(words)
            places = [start + k for k, one in enumerate(shown) if one is not None]
            scores = word_scores(model, inputs, places, gradient)
            for place, score in zip(places, scores, strict=True):
                rows[name].append((not shown[place - start], score))
    rows["described"] = rows["described, there"] + rows["described, not there"]
    rows["all"] = rows["captions"] + rows["described"]
    for name in ("captions", "described", "described, not there", "all"):
        wrong = np.array([one for one, _ in rows[name]])
        print(f"{name}: {wrong.sum()} of {len(wrong)} words are not in the picture", flush=True)
        for score in rows[name][0][1]:
            values = np.array([scores[score] for _, scores in rows[name]])
            print(f"    {score}: AUROC {auroc_interval(wrong, -values, seed)}", flush=True)


def word_scores(model: Any, inputs: dict[str, Tensor], places: list[int], gradient: str) -> list[dict[str, float]]:
    """The scores of words, low where a word is suspect."""
    with torch.no_grad():
        chances = model(**inputs, use_cache=False).logits[0].softmax(-1)
    found: list[dict[str, float]] = []
    runners = []
    for place in places:
        token = int(inputs["input_ids"][0, place])
        found.append({"probability": float(chances[place - 1, token])})
        rest = chances[place - 1].clone()
        rest[token] = 0
        runners.append(int(rest.argmax()))
    options: dict[str, Any] = {"inputs": inputs, "positions": places, "gradient": gradient}
    plain = vitrail.explain_generation(model, **options)
    against = vitrail.explain_generation(model, **options, against=runners)
    for k, scores in enumerate(found):
        image, rival_image = plain.image_scores[0][k], against.image_scores[0][k]
        scores["image's share"] = float(plain.grounding[k, 0])
        scores["image's share, against the runner-up"] = float(against.grounding[k, 0])
        scores["signed relevance on the image"] = float(image.sum())
        scores["signed relevance on the image, against the runner-up"] = float(rival_image.sum())
        scores["highest patch"] = float(image.max())
        scores["highest patch, against the runner-up"] = float(rival_image.max())
    return found


def auroc(wrong: np.ndarray, suspicion: np.ndarray) -> float:
    """The chance that a wrong word is more suspect than a right one; ties count half."""
    from scipy.stats import rankdata

    ranks, bad = rankdata(suspicion), int(wrong.sum())
    if bad in (0, len(wrong)):
        return float("nan")
    return float((ranks[wrong].sum() - bad * (bad + 1) / 2) / (bad * (len(wrong) - bad)))


def auroc_interval(wrong: np.ndarray, suspicion: np.ndarray, seed: int) -> str:
    rng = np.random.default_rng(seed)
    drawn = [auroc(wrong[k], suspicion[k]) for k in rng.integers(0, len(wrong), (1000, len(wrong)))]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{auroc(wrong, suspicion):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("accuracy", "choose", "judge", "grounding", "hallucination"), required=True)
    parser.add_argument("--count", type=int, default=500, help="scenes (default 500)")
    parser.add_argument("--kinds", nargs="+", choices=tuple(QUESTIONS), default=tuple(QUESTIONS), help="questions")
    parser.add_argument(
        "--gradient", default="libra", help="gradient mode of grounding and hallucination (default libra)"
    )
    parser.add_argument("--output", type=Path, help="CSV of every question's figures")
    options = parser.parse_args()
    print(describe_machine())
    model, processor = load()
    seed = HELD_OUT + (options.part == "choose")
    if options.part == "accuracy":
        accuracy(model, processor, options.count, seed)
        return
    if options.part in ("grounding", "hallucination"):
        part = grounding if options.part == "grounding" else hallucination
        part(model, processor, options.count, seed, options.gradient)
        return
    eager, _ = load()
    eager.set_attn_implementation("eager")
    candidates = compared(model, eager, seed, choose=options.part == "choose")
    asked = {kind: QUESTIONS[kind](model, processor, options.count, seed) for kind in options.kinds}
    for figures in judge(candidates, asked):
        for kind in options.kinds:
            print(table(figures, kind), flush=True)
        if options.output is not None:
            with options.output.open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["map", "measure", "number", "value"])
                for name, values in figures.items():
                    for measured, column in values.items():
                        rows.writerows([name, measured, k, value] for k, value in enumerate(column))


if __name__ == "__main__":
    main()
