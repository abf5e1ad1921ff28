"""The work behind `vitrail explain --plan`: what the same words without it would take, in memory and time."""

import json
from dataclasses import asdict

import typer

from vitrail.cli.console import Reporter, show_table
from vitrail.cli.explain import Request
from vitrail.cli.explaining import check_question, classes_of, images_at_once, load_model, passes_at_once
from vitrail.cli.inputs import Found, find_images
from vitrail.inputs import Prepared, prepare_one
from vitrail.models import VisionModel
from vitrail.plan import Plan, in_words, plan

__all__ = ["show_plan"]


def show_plan(request: Request) -> bool:
    """Print the plan of a request; say whether an argument names no image. Raises `VitrailError` as `plan` does."""
    check_question(request)
    reporter = Reporter(as_json=request.as_json)
    found, missing = find_images(request.images, leave_out=request.output)
    model = load_model(request)
    targets, against = classes_of(request, model)
    for argument, error in missing:
        reporter.fail(argument, error)
    question = dict(request.question)
    if against:  # another scalar of the same logits, at the same cost
        question["objective"] = None
        question["gradient"] = question["gradient"].replace("auto", "full")
    example = _example(model, found)
    made = plan(
        model,
        targets=max(1, len(targets), len(against)),
        batch=request.batch_size or None,
        most=images_at_once(model) if len(found) < 1 else min(images_at_once(model), len(found)),
        images=example,
        **question,
        **request.options,
    )
    lanes = passes_at_once(request, model, example[0], made.batch) if example and len(found) > made.batch else 1
    seconds = made.seconds_per_image * len(found)
    if request.as_json:
        more = {"peak": made.peak, "fits": made.fits, "seconds_per_image": made.seconds_per_image}
        document = {**asdict(made), **more, "images": len(found), "passes_at_once": lanes, "seconds_in_all": seconds}
        typer.echo(json.dumps({**document, "failures": reporter.failures}, indent=2))
    else:
        show_table(("what", "how much"), _lines(made, request, len(found), lanes, seconds))
    return bool(missing)


def _example(model: VisionModel, found: list[Found]) -> list[Prepared] | None:
    """The first image that can be read, where there is one: some methods take more for some images."""
    for image in found[:8]:
        try:
            return [prepare_one(model, image.path)]
        except Exception:
            continue
    return None


def _lines(made: Plan, request: Request, images: int, lanes: int, seconds: float) -> list[tuple[str, str]]:
    gradient = f", {made.gradient} gradient" if made.gradient != "full" else ""
    chosen = "as asked" if request.batch_size else "auto"
    most = "at most " * (made.at_most or lanes > 1)
    beside = f"{lanes} after the first, the processor's threads shared out: {in_words(lanes * made.peak)} together"
    return [
        ("model", f"{made.model}, {made.dtype}, {made.device}, weights {in_words(made.weights)}"),
        ("input", f"{made.size[0]} × {made.size[1]} pixels"),
        ("question", f"{made.method}{gradient}, {made.targets} target{'s' * (made.targets != 1)} an image"),
        ("images per pass", f"{made.batch} ({chosen})"),
        (
            "peak memory",
            f"{in_words(made.peak)} of tensors beyond the weights: {in_words(made.first)} for one image, "
            f"{in_words(made.each)} for each more",
        ),
        *[("passes side by side", beside)] * (lanes > 1),
        ("free memory", f"{in_words(made.free)}{'' if made.fits else ': too little, passes will be halved'}"),
        ("time", f"{most}{made.seconds_per_image:.3g} s an image, {most}{_duration(seconds)} for {images} of them"),
    ]


def _duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> _duration(0.25), _duration(75.0), _duration(7300.0)
        ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
