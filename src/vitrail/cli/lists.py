"""`vitrail methods`, `vitrail models`, `vitrail describe`: what `--method` and `--model` take, and what a model is."""

from typing import Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import show, show_json, show_result

__all__ = ["describe_command", "methods_command", "models_command"]


def methods_command(as_json: shared.AsJson = False) -> None:
    """List the attribution methods: signed or not, class-specific or not, their cost and their reference."""
    from vitrail.methods import list_methods

    fields = ("name", "signed", "class_specific", "passes", "level", "summary", "reference")
    found = [{field: getattr(info, field) for field in fields} | {"options": info.options} for info in list_methods()]
    words = {True: "yes", False: "no"}
    rows = [[words[value] if isinstance(value := one[field], bool) else value for field in fields] for one in found]
    header = ("method", "signed", "by class", "passes", "level", "what it is", "reference")
    show_result(found, header, rows, as_json=as_json, fold=True)


def describe_command(
    model: shared.ModelName,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    size: shared.InputSize = None,
) -> None:
    """Describe a model: its input, its tokens, how they move from layer to layer, and the methods that follow them."""
    from vitrail.cli.image_run import load_named
    from vitrail.methods import list_methods
    from vitrail.models.layout import layout_of

    own = {"num_classes": num_classes, "class_names": class_names, "size": shared.parse_size(size) if size else None}
    found = load_named(model, checkpoint, device="cpu", **own)
    for line in found.describe().splitlines():
        show(line)
    graph = layout_of(found, found.blank(), follow=True).graph
    if graph is not None:
        show()
        show("Tokens, from the image to the logits:")
        for line in graph.lines():
            show(f"  {line}")
        able = ", ".join(info.name for info in list_methods() if info.follows)
        show()
        show(f"{able} follow these steps. The CAM family needs none of them; other methods refuse this model.")


def models_command(
    pattern: Annotated[str, typer.Argument(help='Wildcard pattern, as in "timm/vit_*" or "*dinov2*".')] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """List the models that can be loaded by name, except those of Hugging Face (hf/…)."""
    from vitrail.models import list_models

    names = list_models(pattern)
    if as_json:
        show_json(names)
    elif names:
        for name in names:
            show(name)
    if not names:
        show(f"Error: no model matches {pattern!r}; * stands for anything, as in '*{pattern}*'", err=True)
        raise typer.Exit(1)
