"""`vitrail models [PATTERN]`: the names that `--model` takes."""

from typing import Annotated

import typer

from vitrail.cli.console import show, show_json

__all__ = ["models_command"]


def models_command(
    pattern: Annotated[str, typer.Argument(help='Wildcard pattern, as in "timm/vit_*" or "*dinov2*".')] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """List the models that can be loaded by name (Hugging Face models, hf/…, cannot be listed)."""
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
