"""The figures of "Transformer Interpretability from Perspective of Attention and Gradient" but for the curves.

Each function draws its figure and returns its numbers, those of `effects` among them: what argues for a class is found
by making parts of the image black, and the maps are held against it.

The order of definition is the order in which `vitrail reproduce` lists them.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from ..compare import compare
from ..counterfactual.rewrite import rewrite
from ..counterfactual.transfer import transfer as move_attention
from ..errors import ExperimentError
from ..explain import explain
from ..explanation import Explanation
from ..guidance.detail import detail
from ..guidance.guide import Guide
from ..guidance.typical import typical_pictures
from ..plotting.class_pair import draw_pair, draw_pairs
from ..plotting.comparison import draw_comparison
from ..plotting.figure import draw_guided
from ..plotting.rewriting import draw_rewrite
from ..plotting.transfer import draw_transfer
from .effects import both_ways, cell_effects, ends_removed, mean_of, on_object, signs, whereabouts
from .registry import Question, needs, register_experiment

__all__ = [
    "comparison",
    "gradients",
    "guide",
    "methods",
    "pairs",
    "rewriting",
    "single",
    "stitched",
    "transfer",
    "typical",
]

EQUATIONS = {"gae": "positive", "complete": "complete", "absolute": "absolute"}  # Eq. 4, 5 and 6
EQ_8 = "normalized_difference"
UNTIL = 0.938  # the probability that the paper reports for a rewriting
BLACK = "What argues for a class is measured by making parts of the image black."
WANTS = "images; --target once, or once per image; --methods"  # of both sheets of methods


@register_experiment("single", figures=(3, 7), wants="images of one object; --target; --methods", takes=("methods",))
def single(question: Question) -> list[dict[str, Any]]:
    """Images of one object each, one row per image: the complete gradient turns blue on the object (Fig. 3, 7)."""
    names = question.chosen_methods(tuple(EQUATIONS))
    images = list(question.images)
    targets: Any = question.one_per_image()
    columns = [explain(question.model, images, targets, method=name, **question.options) for name in names]
    found = {name: [] for name in names}
    for number, path in enumerate(images):
        question.report("parts made black", number, len(images))
        cells = cell_effects(question.model, path).arguing(int(columns[0].target[number]))
        for ex in columns:
            found[ex.method].append(on_object(ex.map(number), cells))
    file = question.draw(columns, "single", [BLACK])
    told = {"file": str(file), "images": [str(path) for path in images], "targets": columns[0].target.tolist()}
    return [{**told, "object": found}]


@register_experiment(
    "gradients",
    figures=(4, 5),
    wants="images; --target twice or more, or the two best classes; --methods",
    takes=("methods",),
)
def gradients(question: Question) -> list[dict[str, Any]]:
    """The positive, complete and absolute gradient of each class: the sign separates the classes, |∇A| does not."""
    needs(len(question.targets) != 1, "gradients compares classes: name two or more, or none for the two best")
    named = set(question.targets)
    needs(len(named) == len(question.targets), "gradients compares classes, but one is named twice: name each once")
    names = question.chosen_methods(tuple(EQUATIONS))
    results = []
    for path in question.images:
        targets = list(question.targets) or _best(question, path)
        columns = [
            explain(question.model, [path] * len(targets), targets, method=method, **question.options)
            for method in names
        ]
        alike = {ex.method: correlations(ex) for ex in columns}
        words = ", ".join(f"{EQUATIONS[name]} {sum(found) / len(found):+.2f}" for name, found in alike.items())
        note = f"Mean correlation between the maps of different classes: {words}.".replace("-", "−")
        file = question.draw(columns, f"gradients.{path.stem}", [note])
        result = {"file": str(file), "image": str(path), "targets": targets, "correlation": alike}
        effects = cell_effects(question.model, path)
        results.append({**result, "signs": {ex.method: both_ways(ex, effects) for ex in columns}})
    return results


def correlations(ex: Explanation) -> list[float]:
    """Returns Pearson's correlation between the maps of every two rows of an explanation."""
    return [
        float(torch.corrcoef(torch.stack([ex.map(i).flatten(), ex.map(j).flatten()]).double())[0, 1])
        for i, j in combinations(range(len(ex)), 2)
    ]


def _best(question: Question, path: Any) -> list[int]:
    return explain(question.model, path, method="raw").logits[0].topk(2).indices.tolist()


@register_experiment("pairs", wants="images of one object; --target and --against, or the three best classes")
def pairs(question: Question) -> list[dict[str, Any]]:
    """Every pair of an image's best classes, both ways, under Eq. 8: the details that tell them apart."""
    results = []
    for path in question.images:
        target, others = question.target, list(question.targets[1:] + question.against) or None
        found = detail(question.model, path, target, others, losses=[EQ_8], **question.options)
        back = [found.reversal(EQ_8, *pair) for pair in found.pairs]
        note = "Correlation of each map with that of the reverse question: " + ", ".join(f"{r:+.2f}" for r in back)
        file = question.draw(found.maps[EQ_8], f"pairs.{path.stem}", [note.replace("-", "−") + "."])
        results.append({"file": str(file), "image": str(path), "pairs": list(found.pairs), "reversal": back})
    return results


@register_experiment(
    "stitched",
    figures=(8,),
    wants="images; --target once, or once per image; --guide PICTURE, or auto; --methods",
    takes=("guide", "methods"),
)
def stitched(question: Question) -> list[dict[str, Any]]:
    """Each photograph stitched to a guide of another class, and where the signed map puts for and against."""
    guide = Guide(question.guide or "auto")
    targets: Any = question.one_per_image()
    columns: list[Explanation] = []
    shares: dict[str, list[dict[str, float]]] = {}
    for method in question.chosen_methods(tuple(EQUATIONS)):
        ex = explain(question.model, list(question.images), targets, method=method, guide=guide, **question.options)
        (whole, *_) = ex.guided
        columns.append(whole)
        shares[EQUATIONS[method]] = [_halves(whole, number) for number in range(len(whole))]
    name, rows = ("complete", shares["complete"]) if "complete" in shares else next(iter(shares.items()))
    own, far, *_ = mean_of(rows).values()
    note = (
        f"{name.capitalize()} gradient: {own:.0%} of the patches of the photographs' own half are above zero, "
        f"{far:.0%} of the guide's half below."
    )
    file = question.draw(columns, "stitched", [note.replace("%", " %")])
    return [
        {
            "file": str(file),
            "images": [str(path) for path in question.images],
            "targets": columns[0].target.tolist(),
            "guides": [facts.class_name for facts in columns[0].provenance.beside],
            "shares": shares,
        }
    ]


def _halves(whole: Explanation, number: int) -> dict[str, float]:
    """Returns shares of patches, and of relevance, by sign in the two halves of a stitched map."""
    stitch, scores = whole.provenance.stitch, whole.map(number)
    assert stitch is not None  # of a stitched map
    own, far = scores[stitch.shown.slices()], scores[stitch.guide.slices()]
    positive, negative = own.clamp(min=0).sum() / own.abs().sum(), (-far).clamp(min=0).sum() / far.abs().sum()
    return {
        "own half above zero": float((own > 0).float().mean()),
        "guide half below zero": float((far < 0).float().mean()),
        "own half positive relevance": float(positive),
        "guide half negative relevance": float(negative),
    }


@register_experiment("guide", wants="images; --target; --guide PICTURE, or auto", takes=("guide",))
def guide(question: Question) -> list[dict[str, Any]]:
    """A photograph of one object, explained with and without a guide: blue leaves the object."""
    results = []
    given = Guide(question.guide or "auto")
    for path, target in zip(question.images, question.one_per_image() or [None] * len(question.images), strict=True):
        guided, alone = (
            explain(question.model, path, target, guide=steered, **question.options) for steered in (given, None)
        )
        file = question.save(draw_guided(guided, alone), f"guide.{path.stem}")
        positive = {name: float((ex.map() > 0).float().mean()) for name, ex in (("guided", guided), ("alone", alone))}
        results.append(
            {
                "file": str(file),
                "image": str(path),
                "target": int(guided.target[0]),
                "guides": guided.metadata["guides"][0],
                "share above zero": positive,
            }
        )
    return results


@register_experiment(
    "typical",
    figures=(9,),
    wants="images; --target, --against, each once or once per image; --typical FOLDER",
    takes=("typical",),
)
def typical(question: Question) -> list[dict[str, Any]]:
    """Classes against each other under Eq. 8, and what the pictures of the opposing class look like (Fig. 9)."""
    needs(bool(question.against), "typical compares two classes: name the opposing one with against=")
    if question.typical is None:
        raise ExperimentError("typical shows pictures of the opposing class: give their folder with typical=")
    drawn, results = [], []
    for path, target, against in _pairs(question):
        found = detail(question.model, path, target, against, losses=[EQ_8], **question.options)
        for pair in found.pairs:
            given = question.typical
            beside = typical_pictures(question.model, given, pair) if isinstance(given, Path) else dict(given)
            beside = {index: beside[index] for index in pair if index in beside}
            names = [question.model.class_name(index) for index in pair]
            name = f"typical.{path.stem}.{names[0]}-and-{names[1]}".replace(" ", "-")
            file = question.save(draw_pair(found, *pair, typical=beside), name)
            counts = {
                question.model.class_name(index): {
                    "pictures": len(pictures.pictures),
                    **{f"predicted {names[k]}": pictures.predicted_as(pair[k]) for k in (0, 1)},
                }
                for index, pictures in beside.items()
            }
            drawn.append((found, pair, beside))
            result = {"file": str(file), "image": str(path), "pair": list(pair), "names": names, "typical": counts}
            results.append(
                {**result, "effect": ends_removed(question.model, path, found.view(EQ_8, *pair).map(), pair)}
            )
    sheet = question.save(draw_pairs(drawn, framed=question.framed), "typical")
    return [{**one, "sheet": str(sheet)} for one in results]


def _pairs(question: Question) -> list[tuple[Path, int | None, list[int]]]:
    """Returns each image with its question: its own pair where as many classes are named on both sides."""
    images, count = question.images, len(question.images)
    if count > 1 and len(question.against) == len(question.targets) == count:
        triples = zip(images, question.targets, question.against, strict=True)
        return [(path, target, [other]) for path, target, other in triples]
    return [(path, question.target, list(question.against)) for path in images]


@register_experiment(
    "transfer",
    figures=(6,),
    wants="images; --target, --against; --steps (50), --lr (0.0004)",
    takes=("steps", "lr"),
)
def transfer(question: Question) -> list[dict[str, Any]]:
    """The maps of target and opposing class while attention alone takes the target's logit down, and both curves."""
    needs(len(question.targets) < 2, "transfer lowers one class: name it with targets=, others with against=")
    steps = 50 if question.steps is None else question.steps
    lr = 4e-4 if question.lr is None else question.lr
    results = []
    for path in question.images:
        target, (opposing, *also) = question.target, question.against or (None,)
        found = move_attention(
            question.model,
            path,
            target,
            opposing,
            also=[index for index in also if index is not None],
            steps=steps,
            lr=lr,
            progress=lambda done, total, path=path: question.report(f"{path.name}, attention", done, total),
        )
        file = question.save(draw_transfer(found), f"transfer.{path.stem}")
        logits = {
            found.class_name(index): {str(step): float(found.curve(index)[step]) for step in found.snapshots}
            for index in found.classes
        }
        result = {"file": str(file), "image": str(path), "steps": steps, "lr": lr, "logits": logits}
        results.append({**result, "relevance": whereabouts(found, cell_effects(question.model, path))})
    return results


@register_experiment(
    "rewriting",
    figures=(11,),
    wants="images; --target: the class to reach, --against: the one to leave; --until (0.938)",
    takes=("until",),
)
def rewriting(question: Question) -> list[dict[str, Any]]:
    """Before, after, the difference amplified, both probabilities by step, and the signed maps of both pictures."""
    target = question.target
    if target is None or len(question.targets) > 1:
        raise ExperimentError("rewriting needs the one class that shall be reached: name it with targets=")
    results = []
    for path in question.images:
        found = rewrite(
            question.model,
            path,
            target=target,
            source=question.against[0] if question.against else None,
            until=UNTIL if question.until is None else question.until,
            progress=lambda now, path=path: question.report(f"{path.name}, {now.target:.3f}", now.step, now.steps),
            **question.options,
        )
        file = question.save(draw_rewrite(found), f"rewriting.{path.stem}")
        written = found.save(question.output / f"{question.prefix}rewriting.{path.stem}.rewritten.png")
        logits = [
            [float(ex.logits[0, index]) for index in (found.source, target)] for ex in (found.before, found.after) if ex
        ]
        told = {"file": str(file), "image": str(path), "rewritten": str(written), "logits": logits}
        results.append({**told, **found.record()})
    return results


@register_experiment("comparison", figures=(10,), wants=f"{WANTS} (default: fast)", takes=("methods",))
def comparison(question: Question) -> list[dict[str, Any]]:
    """Methods side by side on several images, one row each (Fig. 10), with the time and the passes that each took."""
    return _sheet(question, "comparison", question.methods or ("fast",))


@register_experiment("methods", figures=(13,), wants=f"{WANTS} (default: class)", takes=("methods", "models"))
def methods(question: Question) -> list[dict[str, Any]]:
    """All class-aware methods side by side, one row per image (Fig. 13); rollout, which knows no class, is left out."""
    return _sheet(question, "methods", question.methods or ("class",))


def _sheet(question: Question, name: str, chosen: tuple[str, ...]) -> list[dict[str, Any]]:
    """Draws a row for each model and image; `against` are the other classes in the images, which are measured only."""
    targets = question.one_per_image() or [None] * len(question.images)
    others = question.against * (len(targets) if len(question.against) == 1 else 1)
    needs(len(others) in (0, len(targets)), f"{len(others)} opposing classes for {len(targets)} images: name as many")
    rows, found = [], []
    for model in question.models:
        for number, (path, target) in enumerate(zip(question.images, targets, strict=True)):
            asked = None if target is None else question.index_in(model, target)
            rows.append(
                compare(
                    model,
                    path,
                    asked,
                    methods=chosen,
                    progress=lambda label, done, total, path=path: question.report(
                        f"{path.name}, {label}", done, total
                    ),
                    **question.options,
                )
            )
            if others:
                effects, index = cell_effects(model, path), int(rows[-1].target[0])
                other = question.index_in(model, others[number])
                maps = rows[-1].maps.items()
                found.append({label: signs(scores[0], effects, index, other) for label, scores in maps})
    file = question.save(draw_comparison(rows), name)
    return [
        {
            "file": str(file),
            "images": [str(path) for path in question.images],
            "models": [model.name for model in question.models],
            "methods": [one.label for one in rows[0].answers],
            "failures": {label: str(error) for row in rows for label, error in row.failures.items()},
            "rows": [row.record() for row in rows],
            "signs": found,
        }
    ]
