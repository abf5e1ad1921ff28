"""How well an audit finds wrong labels that people found, and what it costs.

    python -m benchmarks.audit real photos/ --boxes boxes.csv --checkpoint w.safetensors --output run/
    python -m benchmarks.audit cost --images 1000

`real`: ImageNet's validation images with the labels of ReaL (Beyer et al. 2020, arXiv 2006.07159), which timm installs:
an image's label is wrong where it is not among them; images for which they list none are left out. Every score is
a ranking of the same images: what the audit gives (margin, self-confidence, confident learning), and three from maps,
to see whether maps rank better than the margin: `disjoint`, how little the positive relevance of the given and of the
suggested class overlaps; `contrast`, the share of the contrastive map's relevance that argues for the suggested class;
`typical`, how far the part that is typical of the suggested class argues for it. Intervals are 95 % bootstrap
intervals over images; `gain` is a score's average precision less the margin's, paired.

`cost`: seconds per image of an audit, and of its passes, on the bestiary.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score, roc_auc_score

import vitrail
from vitrail.audit import Audit
from vitrail.audit.class_pairs import typical_share
from vitrail.benchmark.measure import describe_machine
from vitrail.inputs import prepare
from vitrail.metrics.aggregation import LEVEL, draws
from vitrail.objectives import overlap

MODEL = "timm/vit_tiny_patch16_224"
REAL = "_info/imagenet_real_labels.json"
TOP = 20


def real_labels(source: str, known: list[list[int]]) -> list[int]:
    """Returns the ReaL labels of a validation image by the number in its name."""
    number = re.search(r"val_(\d{8})", source)
    if number is None:
        raise SystemExit(f"{source} is not named as ImageNet's validation images are, ILSVRC2012_val_00000001.JPEG")
    return known[int(number[1]) - 1]


def precision_at(wrong: Bool[np.ndarray, " images"], score: Float[np.ndarray, " images"], count: int = TOP) -> float:
    """Returns the share of wrong labels among the `count` most suspect."""
    return float(wrong[np.argsort(-score, kind="stable")[:count]].mean())


MEASURES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "AUROC": lambda wrong, score: float(roc_auc_score(wrong, score)),
    "AP": lambda wrong, score: float(average_precision_score(wrong, score)),
    f"P@{TOP}": precision_at,
}


def interval(
    wrong: Bool[np.ndarray, " images"],
    score: Float[np.ndarray, " images"],
    measure: Callable[[np.ndarray, np.ndarray], float],
    less: Float[np.ndarray, " images"] | None = None,
) -> tuple[float, float, float]:
    """Returns a measure (less that of another score on the same resamples) with its 95 % interval."""

    def value(rows: Any) -> float:
        own = measure(wrong[rows], score[rows])
        return own if less is None else own - measure(wrong[rows], less[rows])

    found = [value(rows) for some in draws(len(wrong), resamples=1000) for rows in some if wrong[rows].any()]
    low, high = np.quantile(found, LEVEL)
    return value(slice(None)), float(low), float(high)


def map_scores(model: Any, folder: Path, audit: Audit) -> dict[str, Float[np.ndarray, " images"]]:
    """Returns the scores that are made of maps, for all images of the audit."""
    found: dict[str, list[float]] = {"disjoint": [], "contrast": [], "typical": []}
    for one in audit.ranked:
        image = prepare(model, folder / one.source).batch
        both = vitrail.explain(model, image, [[one.given, one.suggested]], compete=False).scores[0]
        contrast = vitrail.explain(model, image, one.given, against=one.suggested).scores[0]
        found["disjoint"].append(1 - float(overlap(both[:1], both[1:])[0]))
        found["contrast"].append(float((-contrast).clamp(min=0).sum() / contrast.abs().sum()))
        found["typical"].append(-typical_share(both[1].numpy(), contrast.numpy()))
    return {name: np.array(values) for name, values in found.items()}


def real(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the rankings against ReaL."""
    model = vitrail.load(MODEL, checkpoint=options.checkpoint)
    folder = Path(options.data)
    audit = vitrail.audit(
        model, folder, output=options.output, data_options={"boxes": options.boxes}, pairs=0, suspects=0
    )
    known = json.loads((Path(timm.data.__file__).parent / REAL).read_text())
    lists = [real_labels(one.source, known) for one in audit.ranked]
    judged = np.array([bool(own) for own in lists])
    wrong = np.array([one.given not in own for one, own in zip(audit.ranked, lists, strict=True)])[judged]
    scores = {
        "margin": -np.array([one.margin for one in audit.ranked]),
        "self-confidence": -np.array([one.self_confidence for one in audit.ranked]),
        "confident learning": np.array([float(one.issue) for one in audit.ranked]),
        "disagreement": np.array([float(one.margin < 0) for one in audit.ranked]),
        **map_scores(model, folder, audit),
    }
    rows = {}
    for name, values in scores.items():
        score = values[judged]
        rows[name] = {label: interval(wrong, score, measure) for label, measure in MEASURES.items()}
        rows[name]["gain in AP"] = interval(wrong, score, MEASURES["AP"], scores["margin"][judged])
    return {"images": int(judged.sum()), "wrong": int(wrong.sum()), "scores": rows}


def cost(options: argparse.Namespace) -> dict[str, Any]:
    """Times an audit of drawn scenes."""
    model, taken = vitrail.load("bestiary"), {}
    with tempfile.TemporaryDirectory() as folder:
        begun = {}

        def progress(what: str, done: int, total: int) -> None:
            begun.setdefault(what, time.perf_counter())
            taken[what] = {"images": done, "of": total, "seconds": time.perf_counter() - begun[what]}

        start = time.perf_counter()
        found = vitrail.audit(model, f"bestiary:single:{options.images}", output=folder, progress=progress)
        whole = time.perf_counter() - start
        return {"suspects": len(found.suspects), "pairs": len(found.pairs), "passes": taken, "seconds": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("real")
    one.add_argument("data")
    one.add_argument("--boxes", required=True)
    one.add_argument("--checkpoint")
    one.add_argument("--output", required=True)
    one = parts.add_parser("cost")
    one.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    print(json.dumps({"machine": describe_machine(), **(real if options.part == "real" else cost)(options)}, indent=1))


if __name__ == "__main__":
    main()
