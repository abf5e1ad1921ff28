"""`vitrail models [PATTERN]`: the names that `--model` takes."""

import json
from typing import Annotated

import typer

__all__ = ["models_command"]


def models_command(
    pattern: Annotated[str, typer.Argument(help='Wildcard pattern, as in "timm/vit_*" or "*dinov2*".')] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """List the models that can be loaded by name (Hugging Face models, hf/…, cannot be listed)."""
    from vitrail.models import list_models

    names = list_models(pattern)
    if as_json:
        typer.echo(json.dumps(names, indent=2))
    elif names:
        typer.echo("\n".join(names))
    if not names:
        typer.echo(f"Error: no model matches {pattern!r}; * stands for anything, as in '*{pattern}*'", err=True)
        raise typer.Exit(1)
