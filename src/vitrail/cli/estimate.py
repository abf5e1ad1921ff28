"""The work behind `vitrail explain --plan`: memory and time of the same command without it."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vitrail.cli.console import STARTED, Reporter, show_result
from vitrail.cli.image_run import (
    FILES,
    ImageRun,
    Request,
    check_question,
    classes_of,
    images_at_once,
    load_model,
    passes_at_once,
)
from vitrail.cli.inputs import Destination, Found, OutputNames, find_images, formats_of
from vitrail.inputs import Prepared, prepare_one
from vitrail.models import VisionModel
from vitrail.plan import Plan, in_words, plan

__all__ = ["duration", "show_plan"]

SAMPLE = 6.0  # seconds, about, of explaining and drawing for a plan


Classes = tuple[list[int], list[int]]
Results = Callable[[ImageRun, VisionModel, Classes, Sequence[str]], Iterable[Any]]


def show_plan(request: Request, results: Results) -> bool:
    """Prints the plan of a request; returns whether an argument names no image. Raises `VitrailError` as `plan` does.

    `results` explains and draws the images of a run, a few of which are timed.
    """
    check_question(request)
    reporter = Reporter(as_json=request.as_json)
    found, missing = find_images(request.images, leave_out=request.output)
    model = load_model(request)
    before = time.perf_counter() - STARTED
    targets, against = classes_of(request, model)
    for argument, error in missing:
        reporter.fail(argument, error)
    question = dict(request.question)
    if against:  # another scalar of the same logits, at the same cost
        question["objective"] = None
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
    passes = 1
    if example and len(found) > made.batch and request.seed is None:
        passes = passes_at_once(model, example[0].tensor, made.batch)
    each, most = _pace(request, model, (targets, against), found, made, results)
    seconds = before + sum(each[: len(found)]) + each[-1] * max(0, len(found) - len(each))
    more = {"peak": made.peak, "fits": made.fits, "seconds_per_image": made.seconds_per_image}
    document = {**asdict(made), **more, "images": len(found), "passes_at_once": passes}
    document |= {"seconds_before": before, "seconds_in_all": seconds, "seconds_at_most": most}
    document["failures"] = reporter.failures
    lines = _lines(made, request, passes, _times(each[-1], before, seconds, len(found), most))
    show_result(document, ("what", "how much"), lines, as_json=request.as_json)
    return bool(missing)


def _pace(
    request: Request, model: VisionModel, classes: Classes, found: Sequence[Found], made: Plan, results: Results
) -> tuple[list[float], bool]:
    """Returns the seconds of the first images and, last, of each further one; and whether they are an upper bound.

    Some of the images are really explained, drawn and written, into a temporary folder: drawing often takes longer than
    explaining. Where explaining alone takes seconds, the times of `made` are used.
    """
    sample = list(found)
    if not sample or made.seconds_per_image > SAMPLE / 2:
        return [made.seconds_per_image], made.competes
    formats = formats_of(request.formats or _by_ending(request.output), len(found))
    with TemporaryDirectory() as folder:
        place = Destination(Path(folder))
        names = OutputNames(place.folder, sample)

        def taken(images: Sequence[Found]) -> float:
            start = time.perf_counter()
            run = ImageRun(request, place, list(images), [], names, _Silent(as_json=True))
            list(results(run, model, classes, formats))
            return (time.perf_counter() - start) / len(images)

        each = [taken(sample[:1])]  # with what only the first one takes, such as Matplotlib's fonts
        if len(sample) > 1:
            each.append(taken(sample[1:2]))
        count = min(len(sample) - 2, 3 * (request.batch_size or images_at_once(model)), int(SAMPLE / each[-1]))
        if count > 0:
            each.append(taken(sample[2 : 2 + count]))
    return each, False


def _by_ending(output: Path) -> tuple[str, ...]:
    kind = output.suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    return (kind,) if kind in FILES and not output.is_dir() else ()


class _Silent(Reporter):
    """Reports nothing: a failed image is reported by the run, not by its plan."""

    def say(self, line: str) -> None:
        del line


def _example(model: VisionModel, found: list[Found]) -> list[Prepared] | None:
    """Returns the first image that can be read, if any: the cost of some methods depends on the image."""
    for image in found[:8]:
        try:
            return [prepare_one(model, image.path)]
        except Exception:
            continue
    return None


def _lines(made: Plan, request: Request, passes: int, times: str) -> list[tuple[str, str]]:
    gradient = f", {made.gradient} gradient" if made.gradient != "full" else ""
    gradient += ", class competition" * made.competes
    chosen = "as asked" if request.batch_size else "auto"
    side_by_side = (
        f"{passes} after the first, the processor's threads shared out: {in_words(passes * made.peak)} together"
    )
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
        *[("passes side by side", side_by_side)] * (passes > 1),
        ("free memory", f"{in_words(made.free)}{'' if made.fits else ': too little, passes will be halved'}"),
        ("time", times),
    ]


def _times(each: float, before: float, seconds: float, images: int, most: bool) -> str:
    bound = "at most " * most
    whole = f"{bound}{duration(seconds)} for {images}, {duration(before)} of it before the first"
    return f"{bound}{each:.3g} s an image with drawing and writing, {whole}"


def duration(seconds: float) -> str:
    """Returns a time in words.

    Example:
        >>> duration(0.25), duration(75.0), duration(7300.0)
        ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
