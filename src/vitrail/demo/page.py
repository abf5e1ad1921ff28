"""The page of the demonstration: one HTML file without scripts, fonts or addresses from elsewhere.

Each of its chapters asks one thing of a scene of the bestiary and draws the answer.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from vitrail.bestiary import CLASS_NAMES, LabelErrors, Scene, render, sample_scene
from vitrail.bestiary.model import SIZE
from vitrail.bestiary.species import species
from vitrail.compare import passes_taken
from vitrail.evaluate import MEASURES, score
from vitrail.explain import explain
from vitrail.explanation import Explanation
from vitrail.files import atomic_write, writable_folder
from vitrail.methods.registry import choose_methods
from vitrail.models import VisionModel, load
from vitrail.plotting import overlay, save_picture
from vitrail.plotting.saving import web_page

__all__ = ["chapters", "write_demo"]

LARGE = 672  # pixels at which a scene is drawn for people; the model sees it drawn at 96

# Chosen from ten or so seeds because they show their point plainly; how often it is so, the score table tells.
SINGLE = sample_scene("single", seed=4, species="quillow")
PAIR = sample_scene("pair", seed=1, species=("tavel", "murlo"))
SIBLING = sample_scene("single", seed=23, species="tavel")
CHIMERA = sample_scene("chimera", seed=5, species=("lindle", "skarn"))

# Of all questions about siblings the clearest: the difference of the two logits, with LayerNorm's normaliser constant.
DETAIL = {"objective": "difference", "gradient": "libra"}

CAPTION = "what is in the picture?"
CAN_WRITE = importlib.util.find_spec("transformers") is not None

Progress = Callable[[str, int, int], None]


def write_demo(
    folder: str | os.PathLike[str], *, count: int = 30, quick: bool = False, progress: Progress | None = None
) -> Path:
    """Draws the demonstration into `folder`, scores methods on `count` scenes of each kind, and returns the page.

    `quick` draws the first picture alone: two creatures and three questions, without other methods and scores.
    Everything comes from the package: no network, no file of the user. Raises `OutputFileError` where the folder
    cannot be written, `CheckpointError` where the package's weights are damaged.

    >>> import tempfile
    >>> write_demo(tempfile.mkdtemp(), count=2).name  # doctest: +SKIP
    'index.html'
    """
    report = progress if progress is not None else lambda *_: None
    output = writable_folder(folder)
    model, mistaught = load("bestiary"), load("bestiary/label-errors")
    parts = []
    steps = 1 if quick else 5 + CAN_WRITE
    for chapter in islice(chapters(model, mistaught, output), 1 if quick else None):
        parts.append(chapter)
        report("drawing pictures", len(parts), steps)
    gallery = [] if quick else list(tiles(model, output))
    report("drawing pictures", steps, steps)
    lines = [] if quick else score(model, gradients=["full", "libra"], count=count, progress=report)
    page = web_page(
        "vitrail.demo",
        chapters=parts,
        tiles=gallery,
        lines=lines,
        measures=MEASURES,
        count=count,
        classes=CLASS_NAMES,
        model=model,
        parameters=sum(p.numel() for p in model.module.parameters()),
    )
    path = output / "index.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


@dataclass(frozen=True)
class Figure:
    """One picture of the page, the words below it and those for who cannot see it, and a page that it leads to."""

    file: str
    caption: str
    alt: str
    leads_to: str = ""


@dataclass(frozen=True)
class Chapter:
    """A heading, a paragraph or two, and pictures."""

    title: str
    text: tuple[str, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Tile:
    """One method's map of the pair: its file, what it took, and whether it can be negative."""

    file: str
    method: str
    note: str
    signed: bool


def chapters(model: VisionModel, mistaught: VisionModel, folder: Path) -> Iterator[Chapter]:
    """Draws the chapters one by one into `folder`; `mistaught` is the model with the planted label errors."""
    yield _pair(model, folder)
    yield _single(model, folder)
    yield _siblings(model, folder)
    yield _errors(model, mistaught, folder)
    if CAN_WRITE:
        yield _words(folder)


def tiles(model: VisionModel, folder: Path) -> Iterator[Tile]:
    """Draws the first creature of the pair as every quick method sees it, one small picture each."""
    target = PAIR.labels[0]
    picture = render(PAIR, LARGE).image
    for info in (one.info for one in choose_methods("fast")):
        asked = target if info.class_specific else None
        started = time.perf_counter()
        ex = explain(model, _seen(PAIR), asked, method=info.name)
        took = time.perf_counter() - started
        name = f"method-{info.name}.png"
        with atomic_write(folder / name) as file:
            Image.fromarray(overlay(ex.map().numpy(), picture, signed=ex.signed)).save(file, format="png")
        kind = "" if info.class_specific else ", the same for every class"
        yield Tile(name, info.name, f"{1000 * took:.0f} ms, {passes_taken(info, ex)}{kind}", info.signed)


def _pair(model: VisionModel, folder: Path) -> Chapter:
    first, second = PAIR.labels
    alone = _ask(model, PAIR, [[first, second]], method="complete")
    rival = _ask(model, PAIR, first, against=second, method="complete")
    save_picture([alone, rival], folder / "pair.png")
    return Chapter(
        "Two creatures, three questions",
        (
            f"A {first} and a {second} in one picture. Why {first}? The map is red on the {first} and blue on the "
            f"{second}: what argues for other classes in the picture is subtracted. Why {second}? It turns round. Why "
            f"{first} and not {second}? Clearest of all. A method that clamps negative gradients shows one blob.",
        ),
        (
            Figure(
                "pair.png",
                f"complete: {alone.question()}; {alone.question(target=1)}; {rival.question()}",
                "The pair and three signed maps",
            ),
        ),
    )


def _single(model: VisionModel, folder: Path) -> Chapter:
    (name,) = SINGLE.labels
    full = _ask(model, SINGLE, name, method="complete", gradient="full")
    default = _ask(model, SINGLE, name, method="complete")
    save_picture([full, default], folder / "single.png")
    return Chapter(
        "One creature alone",
        (
            f"Only a {name}, and nothing to argue against it. Here the full gradient may put blue on the creature "
            "itself, because LayerNorm takes back what all patches say alike. The default holds its normaliser "
            'constant in the backward pass (gradient="libra"), which gives the creature its red back without a guide.',
        ),
        (Figure("single.png", "the full gradient, and the default", "The single creature, full gradient and default"),),
    )


def _siblings(model: VisionModel, folder: Path) -> Chapter:
    errors = LabelErrors()
    ex = _ask(model, SIBLING, errors.shows, against=errors.label, **DETAIL)
    save_picture(ex, folder / "sibling.png")
    first, second = CHIMERA.labels
    half = _ask(model, CHIMERA, first, against=second, **DETAIL)
    save_picture(half, folder / "chimera.png")
    one, other = species(first).family.diagnostic
    return Chapter(
        "Siblings in detail",
        (
            f"A {errors.shows} and a {errors.label} differ in one part only, the {errors.part}. Asked why the one and "
            "not the other, the map finds that part.",
            f"A chimera has the {one} of a {first} and the {other} of a {second}. Asked for the one against the other: "
            f"red ({one}) argues for, blue ({other}) against.",
        ),
        (
            Figure("sibling.png", ex.question(), "One class against its sibling"),
            Figure("chimera.png", half.question(), "A chimera, one half against the other"),
        ),
    )


def _errors(model: VisionModel, mistaught: VisionModel, folder: Path) -> Chapter:
    errors = LabelErrors()
    figures = []
    for name, asked in (("clean", model), ("mistaught", mistaught)):
        ex = _ask(asked, SIBLING, errors.shows, against=errors.label, **DETAIL)
        save_picture(ex, folder / f"labels-{name}.png")
        figures.append(Figure(f"labels-{name}.png", f"{asked.name}: {ex.question()}", f"The map of {asked.name}"))
    return Chapter(
        "A label error, found",
        (
            f"The second model was trained on wrong labels: {errors.share:.0%} of the pictures labelled "
            f"{errors.label} really show a {errors.shows}, and {errors.hidden:.0%} of the true {errors.shows} hide "
            f"their {errors.part}. So it learned that the {errors.part} speaks for {errors.label}. Asked for "
            f"{errors.shows} against {errors.label}, its map puts the {errors.part} on the wrong side; the clean "
            "model's does not. On ImageNet the same question puts a bald eagle's white head on kite's side: eagles "
            "among the pictures labelled kite would explain it, and so would true kites with white heads, which exist.",
        ),
        tuple(figures),
    )


def _words(folder: Path) -> Chapter:
    # Its libraries are no part of every installation.
    from vitrail.generation import explain_generation, load_vlm
    from vitrail.plotting.generation import generation_page

    ex = explain_generation(load_vlm("bestiary/captioner"), _seen(PAIR), CAPTION)
    ex.plot(folder / "words.png")
    with atomic_write(folder / "words.html") as file:
        file.write(generation_page(ex).encode())
    return Chapter(
        "Why that word?",
        (
            f"A small vision-language model was asked “{CAPTION}” and wrote: {ex.answer}. Each word has a map of its "
            "own, and a share of the evidence that lies on the image; the rest lies on the question and on the words "
            "before it. The picture leads to a page on which every word can be pointed at, and two held against each "
            "other.",
        ),
        (Figure("words.png", repr(ex), "A map for each word of the answer", "words.html"),),
    )


def _seen(scene: Scene) -> Image.Image:
    return Image.fromarray(render(scene, SIZE).image)


def _ask(model: VisionModel, scene: Scene, target: object, **question: object) -> Explanation:
    """Explain the scene as the model sees it, and show it as people want to: drawn larger."""
    ex = explain(model, _seen(scene), target, **question)  # type: ignore[arg-type]
    large = torch.from_numpy(render(scene, LARGE).image)[None]
    return replace(ex, images=large, provenance=replace(ex.provenance, picture="the same scene, drawn larger"))
