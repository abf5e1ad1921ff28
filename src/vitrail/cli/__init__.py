"""The command `vitrail`: one file per subcommand, with the names of the Python functions."""

import codecs
import os
import sys
import warnings
from pathlib import Path

import typer
from typer import _completion_shared

from vitrail.cli import app as app_page
from vitrail.cli import (
    audit,
    bench,
    bestiary,
    compare,
    demo,
    detail,
    evaluate,
    explain,
    guide,
    lists,
    report,
    reproduce,
    rewrite,
    text,
    transfer,
    vlm,
)
from vitrail.cli.console import show
from vitrail.cli.options import Group, spelled
from vitrail.errors import escaped

__all__ = ["app", "main"]

app = typer.Typer(
    name="vitrail",
    cls=Group,
    help="Explain the decisions of vision transformers: which patches argue for a class, and which against it.",
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
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
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
    "audit",
    cls=spelled(("--pairs",), python={"block": "--block-size"}),
)(audit.audit_command)
app.command(
    "bench",
    cls=spelled(
        ("--model", "-m", "--sizes", "--batch-size", "-b", "--targets", "--along", "--methods"),
        batch="--batch-size",
        python={"models": "--model", "batches": "--batch-size", "tokens": "--along-model"},
    ),
)(bench.bench_command)
app.command("text", cls=spelled())(text.text_command)
app.command("vlm", cls=spelled())(vlm.vlm_command)
app.command("demo", cls=spelled())(demo.demo_command)
app.command("app", cls=spelled())(app_page.app_command)
app.command("models", cls=spelled())(lists.models_command)
app.command("describe", cls=spelled())(lists.describe_command)
app.command("methods", cls=spelled())(lists.methods_command)
app.add_typer(bestiary.group, name="bestiary")


def _simple(error: UnicodeError) -> tuple[str, int]:
    """Replaces a letter that a terminal cannot show by a similar one in ASCII, or by its number."""
    assert isinstance(error, UnicodeEncodeError)
    like = {"−": "-", "–": "-", "…": "...", "×": "x", "→": "->", "·": "-", "≥": ">=", "≤": "<="}
    letters = error.object[error.start : error.end]
    return "".join(like.get(c, c.encode("ascii", "backslashreplace").decode()) for c in letters), error.end


def main() -> None:
    """Runs the command line. Exit codes: 0 for success, 1 where an image failed, 2 for an invalid question.

    130 is Ctrl-C, and 70 an unforeseen error, shown in one line, or with its traceback where `VITRAIL_TRACEBACK` is
    set in the environment.
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
