"""The command `vitrail`: one file per subcommand, the same words as in Python."""

import codecs
import os
import sys
import warnings
from pathlib import Path

import typer
from typer import _completion_shared

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
from vitrail.cli.console import show
from vitrail.cli.options import Group, spelled
from vitrail.errors import escaped

__all__ = ["app", "main"]

app = typer.Typer(
    name="vitrail",
    cls=Group,
    help="See why a Vision Transformer decided as it did: which patches argue for a class, and which against it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# zsh loads the file of a completion on the first Tab of a session, and wants an answer from it; Typer's defines the
# function and gives none, so that this Tab would do nothing.
_SCRIPTS = getattr(_completion_shared, "_completion_scripts", {})
if "funcstack" not in (_ZSH := _SCRIPTS.get("zsh", "funcstack")):
    _SCRIPTS["zsh"] = f'{_ZSH}\n[ "$funcstack[1]" = "_%(prog_name)s" ] && %(complete_func)s "$@"\n'


@app.callback(invoke_without_command=True)
def _vitrail(
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    if version:
        from vitrail import __version__

        show(f"vitrail {__version__}")
        raise typer.Exit


app.command("explain", cls=spelled(batch="--batch-size", python={"texts": "--text", "img_size": "--size"}))(
    explain.explain_command
)
app.command("compare", cls=spelled(("--methods", "--against")))(compare.compare_command)
app.command("detail", cls=spelled(("--against",), python={"losses": "--loss"}))(detail.detail_command)
app.command("guide", cls=spelled(fit="--resize-mode", most="--guide-limit"))(guide.guide_command)
app.command(
    "transfer",
    cls=spelled(
        opposing="--against", at="--figure-step", every="--frame-interval", python={"snapshots": "--figure-step"}
    ),
)(transfer.transfer_command)
app.command("rewrite", cls=spelled(step="--step-size", at="--resolution"))(rewrite.rewrite_command)
app.command("report", cls=spelled())(report.report_command)
app.command("reproduce", cls=spelled(("--methods", "--against"), count="--limit", python={"targets": "--target"}))(
    reproduce.reproduce_command
)
app.command(
    "evaluate",
    cls=spelled(("--methods", "--protocols"), fit="--resize-mode", block="--block-size", keep="--num-previews"),
)(evaluate.evaluate_command)
app.command(
    "bench",
    cls=spelled(
        ("--model", "-m", "--sizes", "--batch-size", "-b", "--targets", "--along", "--methods"),
        batch="--batch-size",
        python={"models": "--model", "batches": "--batch-size", "tokens": "--along-model"},
    ),
)(bench.bench_command)
app.command("text", cls=spelled())(text.text_command)
app.command("demo", cls=spelled())(demo.demo_command)
app.command("app", cls=spelled())(app_page.app_command)
app.command("models", cls=spelled())(models.models_command)
app.command("methods", cls=spelled())(methods.methods_command)
app.add_typer(bestiary.group, name="bestiary")


def _simple(error: UnicodeError) -> tuple[str, int]:
    """What stands for a letter that a terminal cannot show: the like of it in ASCII, or its number."""
    assert isinstance(error, UnicodeEncodeError)
    like = {"−": "-", "–": "-", "…": "...", "×": "x", "→": "->", "·": "-", "≥": ">=", "≤": "<="}
    letters = error.object[error.start : error.end]
    return "".join(like.get(c, c.encode("ascii", "backslashreplace").decode()) for c in letters), error.end


def main() -> None:
    """Run the command line: exit code 0 for all done, 1 where an image failed, 2 for a question at fault.

    It is 130 after Ctrl-C, and 70 for an error that nobody foresaw, which is told in a line; with `VITRAIL_TRACEBACK`
    in the environment it is told by Python, with the place.
    """
    codecs.register_error("vitrail", _simple)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as in `vitrail methods >&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):  # a terminal or a file that cannot show every letter
            stream.reconfigure(errors="vitrail")
    usual = warnings.formatwarning
    warnings.formatwarning = lambda *args, **options: escaped(usual(*args, **options))
    try:
        app(prog_name="vitrail")
    except BrokenPipeError:  # the reader has gone, as in `vitrail methods | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        sys.exit(1)
    except OSError as error:  # of the terminal or the file that output goes to: a full disk, say
        where = f": {error.filename}" if error.filename else ""
        show(f"Error: {error.strerror or error}{where}", err=True)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("VITRAIL_TRACEBACK"):
            raise
        kind, reason = type(error).__name__, " ".join(str(error).split())
        show(f"Error: {kind}: {reason} (not foreseen; VITRAIL_TRACEBACK=1 shows where, for a bug report)", err=True)
        sys.exit(70)
