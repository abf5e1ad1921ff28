"""`vitrail methods`: what each method is and costs."""

from typing import Annotated

import typer

from vitrail.cli.console import show_json, show_table

__all__ = ["methods_command"]


def methods_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """List the methods: signed or not, specific to a class or not, their cost and their source."""
    from vitrail.methods import list_methods

    infos = list_methods()
    if as_json:
        fields = ("name", "signed", "class_specific", "passes", "level", "summary", "reference")
        document = [{field: getattr(info, field) for field in fields} | {"options": info.options} for info in infos]
        show_json(document)
        return
    header = ("method", "signed", "by class", "passes", "level", "what it is", "reference")
    yes_no = {True: "yes", False: "no"}
    show_table(
        header,
        [
            (
                info.name,
                yes_no[info.signed],
                yes_no[info.class_specific],
                info.passes,
                info.level,
                info.summary,
                info.reference,
            )
            for info in infos
        ],
        fold=True,
    )
