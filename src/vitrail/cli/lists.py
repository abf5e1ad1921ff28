"""`vitrail methods` and `vitrail models`: the names that `--method` and `--model` take."""

from typing import Annotated

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import show, show_json, show_result

__all__ = ["methods_command", "models_command"]


def methods_command(as_json: shared.AsJson = False) -> None:
    """List the attribution methods: signed or not, class-specific or not, their cost and their reference."""
    from vitrail.methods import list_methods

    fields = ("name", "signed", "class_specific", "passes", "level", "summary", "reference")
    found = [{field: getattr(info, field) for field in fields} | {"options": info.options} for info in list_methods()]
    words = {True: "yes", False: "no"}
    rows = [[words[value] if isinstance(value := one[field], bool) else value for field in fields] for one in found]
    header = ("method", "signed", "by class", "passes", "level", "what it is", "reference")
    show_result(found, header, rows, as_json=as_json, fold=True)


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
