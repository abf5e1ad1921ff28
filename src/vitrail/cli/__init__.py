"""The command `vitrail`: one file per subcommand, the same words as in Python."""

import typer

from vitrail.cli import app as app_page
from vitrail.cli import (
    bench,
    bestiary,
    compare,
    demo,
    detail,
    evaluate,
    explain,
    guide,
    methods,
    models,
    report,
    reproduce,
    rewrite,
    text,
    transfer,
)
from vitrail.cli.many_values import ManyValues

__all__ = ["app", "main"]

app = typer.Typer(
    name="vitrail",
    help="See why a Vision Transformer decided as it did: which patches argue for a class, and which against it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _vitrail(
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    if version:
        from vitrail import __version__

        typer.echo(f"vitrail {__version__}")
        raise typer.Exit


app.command("explain")(explain.explain_command)
app.command("compare", cls=compare.ManyMethods)(compare.compare_command)
app.command("detail", cls=ManyValues)(detail.detail_command)
app.command("guide")(guide.guide_command)
app.command("transfer")(transfer.transfer_command)
app.command("rewrite")(rewrite.rewrite_command)
app.command("report")(report.report_command)
app.command("reproduce", cls=compare.ManyMethods)(reproduce.reproduce_command)
app.command("evaluate", cls=evaluate.ManyNames)(evaluate.evaluate_command)
app.command("bench", cls=bench.ManyNumbers)(bench.bench_command)
app.command("text")(text.text_command)
app.command("demo")(demo.demo_command)
app.command("app")(app_page.app_command)
app.command("models")(models.models_command)
app.command("methods")(methods.methods_command)
app.add_typer(bestiary.group, name="bestiary")


def main() -> None:
    """Run the command line: exit code 0 for all done, 1 where an image failed, 2 for a question at fault."""
    app(prog_name="vitrail")
