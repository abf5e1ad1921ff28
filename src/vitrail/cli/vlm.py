"""`vitrail vlm`: what a vision-language model writes about an image, and why it wrote each word."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Reporter, show, show_result
from vitrail.cli.image_run import named_device

if TYPE_CHECKING:
    from vitrail.generation import GenerationExplanation

__all__ = ["vlm_command"]


class Vision(StrEnum):
    """Where the maps end: at the patches of the vision tower, or at the image tokens that the text model reads."""

    patches = "patches"
    tokens = "tokens"


def vlm_command(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image file; several are shown to the model together.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Vision-language model: a folder, an id of the Hugging Face hub, or bestiary/captioner.",
        ),
    ],
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="What the model is asked about the image. Default: nothing.")
    ] = "",
    answer: Annotated[
        str | None, typer.Option("--answer", help="Answer to explain. Default: the one that the model gives.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Word that every word of the answer is held against. Default: none.")
    ] = None,
    output: shared.FolderOutput = Path("out"),
    method: Annotated[
        str, typer.Option("--method", help="Attribution method: complete, gae, absolute, rollout or raw.")
    ] = "complete",
    gradient: shared.OwnGradientMode = None,
    objective: shared.Objective = None,
    vision: Annotated[
        Vision, typer.Option("--vision", help="Where the maps end: at the patches, or at the image tokens.")
    ] = Vision.patches,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Most tokens of the model's own answer.")
    ] = 64,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    as_json: shared.AsJson = False,
) -> bool:
    """Explain every word that a vision-language model writes about an image.

    `vitrail vlm photo.jpg --model folder --prompt "What is in the picture?"` writes index.html (point at a word of the
    answer to see its map; click two to see one against the other), sheet.png, words.json and maps.safetensors. Ctrl-C
    ends after the present token and writes what is done.
    """
    import torch

    from vitrail.cli.inputs import try_folder
    from vitrail.errors import ImageError, ModelError
    from vitrail.generation import explain_generation, load_vlm

    folder = try_folder(output)
    reporter = Reporter(as_json=as_json)
    place = named_device(device, str(dtype))
    try:
        loaded = load_vlm(model, device=place, dtype=getattr(torch, str(dtype)))
    except (RuntimeError, AssertionError) as error:  # a device that this machine lacks
        raise ModelError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    question = {"answer": answer, "against": against, "method": method, "objective": objective, "vision": vision.value}
    question |= {"gradient": gradient and str(gradient), "max_new_tokens": max_new_tokens}
    asked = {name: value for name, value in question.items() if value is not None}
    try:
        with reporter.working(1, "explaining tokens"), _interruptible() as (stop, done):

            def progress(doing: str, now: int, total: int) -> None:
                done(now)
                reporter.report(doing, now, total)

            found = explain_generation(loaded, list(images), prompt, progress=progress, stop=stop, **asked)
    except ImageError as error:
        named = [str(one) for one in images]
        reporter.fail(next((one for one in named if str(error).startswith(one)), named[0]), error)
        return True
    from vitrail.plotting.generation import words_document

    paths = _write(found, folder)
    document = words_document(found, images=[str(image) for image in images], files=[str(path) for path in paths])
    show_result(document, _HEADER, _rows(document), as_json=as_json)
    for note in found.notes:
        reporter.say(note)
    for path in () if as_json else paths:
        reporter.say(f"written: {path}")
    if stop():
        raise typer.Exit(130)
    return False


@contextmanager
def _interruptible() -> Iterator[tuple[Callable[[], bool], Callable[[int], None]]]:
    """Gives a question whether to stop, which Ctrl-C answers once a token is done, and whom to tell how many are.

    Before the first token, and the second time, Ctrl-C interrupts as usual.
    """
    asked, tokens = False, 0

    def interrupt(*_: Any) -> None:
        nonlocal asked
        if asked or not tokens:
            raise KeyboardInterrupt
        asked = True
        show("interrupted: writing what is done …", err=True)

    def done(now: int) -> None:
        nonlocal tokens
        tokens = now

    try:
        before = signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not in the main thread
        yield lambda: False, done
        return
    try:
        yield lambda: asked, done
    finally:
        signal.signal(signal.SIGINT, before)


def _write(found: "GenerationExplanation", folder: Path) -> list[Path]:
    """Writes page, sheet, words and maps; returns their paths."""
    import json

    from vitrail.files import atomic_write
    from vitrail.plotting.generation import generation_page, words_document

    paths = [folder / name for name in ("index.html", "sheet.png", "words.json", "maps.safetensors")]
    page, sheet, words, maps = paths
    with atomic_write(page) as file:
        file.write(generation_page(found).encode())
    found.plot(sheet)
    with atomic_write(words) as file:
        file.write(json.dumps(words_document(found), indent=2).encode())
    found.save(maps)
    return paths


_HEADER = ("word", "probability", "image", "prompt", "earlier answer")


def _rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (row["word"], *(f"{100 * value:.1f} %" for value in (row["probability"], *row["grounding"].values())))
        for row in document["words"]
    ]
