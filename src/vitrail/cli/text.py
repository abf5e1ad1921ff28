"""`vitrail text`: which words of a text argue for a class, and which against it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Reporter, Terminal, show, show_json
from vitrail.cli.image_run import check_pairs, for_each, named_device

if TYPE_CHECKING:
    from vitrail.text import TextExplanation

__all__ = ["text_command"]


def text_command(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts, each in quotation marks.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Text classifier with its tokenizer: a folder, or an id of the Hugging Face hub."
        ),
    ],
    target: shared.Targets = None,
    against: shared.Against = None,
    pair: Annotated[
        str | None,
        typer.Option("--pair", help="Second text, for models of text pairs (premise and hypothesis). Default: none."),
    ] = None,
    method: Annotated[
        str,
        typer.Option("--method", help="Attribution method: raw, rollout, gae, complete, absolute, gmar_l1 or gmar_l2."),
    ] = "complete",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File: .html, .png, .jpg, .pdf, .svg or .safetensors; or a folder for text.html. Default: none.",
        ),
    ] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Show special tokens such as [CLS] and [SEP] too.")
    ] = False,
    objective: shared.Objective = None,
    gradient: shared.GradientMode = shared.Gradient.full,
    start_layer: shared.StartLayer = None,
    centred: shared.Centred = False,
    option: shared.MethodOptions = None,
    output_kind: shared.OutputKind = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the text.")] = False,
) -> bool:
    """Colour the words that argue for a class (red) and those that argue against it (blue).

    `vitrail text "Not a bad film." --model folder --target positive` prints the text, coloured on a terminal; elsewhere
    one line for each token. --output also writes a figure, a page or all numbers. A failed text is reported on stderr
    and sets exit code 1; an invalid question sets exit code 2.
    """
    from vitrail.cli.inputs import destination
    from vitrail.methods import find_method
    from vitrail.methods.option_values import typed_options

    question = {
        "method": method,
        "objective": objective,
        "gradient": str(gradient),
        "start_layer": start_layer,
        "centred": centred,
    }
    words = dict(shared.split_option(text) for text in option or [])
    asked = [text if pair is None else (text, pair) for text in texts]
    reporter = Reporter(as_json=as_json)
    place = None if output is None else destination(output, ("html", "png", "jpg", "pdf", "svg", "safetensors"))
    file = None if place is None else place.file or place.folder / "text.html"
    question |= typed_options(find_method(method, words), words)
    load = {"device": device, "dtype": str(dtype)}
    question["output"] = output_kind and str(output_kind)
    found = _explain(asked, model, target or [], against or [], question, load, reporter)
    if found is not None:
        written = None if file is None else str(found.save(file, special=special))
        _print(found, special, as_json, written, reporter)
    return bool(reporter.failures)


def _explain(
    asked: list[Any],
    name: str,
    target: list[str],
    against: list[str],
    question: dict[str, Any],
    load: dict[str, Any],
    reporter: Reporter,
) -> "TextExplanation | None":
    import torch

    from vitrail.errors import ModelError, TextError
    from vitrail.models.hugging_face import load_text, text_model
    from vitrail.text import explain_text

    check_pairs(target, against)
    try:
        module, tokenizer = load_text(name, device=named_device(load["device"]), dtype=getattr(torch, load["dtype"]))
    except (RuntimeError, AssertionError) as error:  # a device that this machine lacks
        raise ModelError(f"device {load['device']!r} cannot be used: {str(error).splitlines()[0]}") from error
    model = text_model(module, tokenizer)
    usable = []
    for number, text in enumerate(asked):
        try:
            model.encode(text)
        except TextError as error:
            reporter.fail(f"text {number}", error)
        else:
            usable.append(text)
    if not usable:
        return None

    return explain_text(
        module,
        tokenizer,
        usable,
        for_each(target, against, len(usable)),
        against=for_each(against, target, len(usable)),
        name=name,
        **question,
    )


def _print(ex: "TextExplanation", special: bool, as_json: bool, written: str | None, reporter: Reporter) -> None:
    if as_json:
        answer = ex.answer
        document = {
            "model": answer.provenance.model,
            "method": answer.method,
            "objective": answer.objective,
            "metadata": {name: of for name, of in answer.metadata.items() if name not in ("sources", "image_notes")},
            "results": [_row(ex, text, target, special) for text in range(len(ex)) for target in range(ex.targets)],
            "failures": reporter.failures,
            "file": written,
        }
        show_json(document)
        return
    console = Terminal()
    for text in range(len(ex)):
        for target in range(ex.targets):
            if console.is_terminal:
                from vitrail.plotting.text import text_lines

                console.print(text_lines(ex, text, target, special=special), end="\n\n")
                continue
            show(ex.question(text, target))
            for token, score in _tokens(ex, text, target, special):
                show(token, f"{score:.6g}")
    for note in [] if console.is_terminal else ex.notes():
        reporter.say(note)
    if written is not None:
        reporter.say(f"written to {written}")


def _tokens(ex: "TextExplanation", text: int, target: int, special: bool) -> list[tuple[str, float]]:
    return [
        (token, float(score))
        for token, score, hidden in zip(ex.tokens[text], ex.of(text, target), ex.special[text], strict=True)
        if special or not hidden
    ]


def _row(ex: "TextExplanation", text: int, target: int, special: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"text": ex.texts[text]}
    for role, classes in (("target", ex.answer.target), ("against", ex.answer.against)):
        if classes is not None:
            index = int(classes.reshape(len(ex), -1)[text, target])
            row |= {
                role: ex.answer.class_name(index),
                f"{role}_index": index,
                f"{role}_probability": ex.answer.probability(index, text),
                f"{role}_logit": ex.answer.logits[text, index].item(),
                **ex.answer.output.record(),
            }
    row["tokens"] = [{"token": token, "score": score} for token, score in _tokens(ex, text, target, special)]
    row["notes"] = list(ex.answer.provenance.image_notes[text])
    return row
