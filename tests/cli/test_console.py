"""What is said where: tables, lines, progress, failures."""

import ast
import io
import json
import logging
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.text import Text

from vitrail.cli import console as door
from vitrail.cli.console import Reporter, Terminal, one_line, show, show_json, show_table, stages, stop
from vitrail.errors import NotAnImageError


def terminal() -> Terminal:
    return Terminal(file=io.StringIO(), force_terminal=True, width=60)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_failures_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(as_json=False)
    reporter.fail("a\nb.png", NotAnImageError("a\nb.png is no image;\nsee there"))
    reporter.fail("c.png", RuntimeError("out of memory"))
    assert capsys.readouterr().err == "a\\nb.png: is no image; see there\nc.png: RuntimeError: out of memory\n"
    assert [failure["error"] for failure in reporter.failures] == ["NotAnImageError", "RuntimeError"]


def test_failures_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(as_json=True).fail("a\nb.png", NotAnImageError("no image"))
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line) == {"image": "a\nb.png", "error": "NotAnImageError", "message": "no image"}


def test_progress_only_on_a_terminal_and_for_several_images(capsys: pytest.CaptureFixture[str]) -> None:
    watched, single, plain = terminal(), terminal(), Terminal(file=io.StringIO())
    for console, total in ((watched, 2), (single, 1), (plain, 2)):
        reporter = Reporter(as_json=False, console=console)
        with reporter.working(total):
            reporter.advance()
    assert "1/2" in shown(watched)
    assert shown(single) == shown(plain) == ""
    assert capsys.readouterr() == ("", "")


def test_lines_beside_the_progress_bar_are_not_broken() -> None:
    console = terminal()
    reporter = Reporter(as_json=False, console=console)
    with reporter.working(2):
        reporter.fail("zoo.png", NotAnImageError("[red]word[/red] :smile: " * 10))
    assert "zoo.png: " + ("[red]word[/red] :smile: " * 10).strip() in shown(console)


def test_warnings_of_the_package_are_shown_while_working(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("vitrail")
    handlers = list(logger.handlers)
    with Reporter(as_json=False).working(1):
        logger.warning("a.gif: the first\nof 3 frames is taken")
    assert "warning: a.gif: the first\\nof 3 frames is taken\n" in capsys.readouterr().err
    assert logger.handlers == handlers


def test_tables_are_tabs_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("image", "target"), iter([("a\tb.png", "zebra"), ("c.png", "kite")]))
    assert capsys.readouterr().out == "image\ttarget\na\\tb.png\tzebra\nc.png\tkite\n"
    show_table(("image", "target"), [])
    assert capsys.readouterr().out == ""


def test_tables_on_a_terminal_drop_empty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_table(("image", "target", "against"), [("[a].png", "zebra", "")])
    out = capsys.readouterr().out
    assert "[a].png" in out
    assert "zebra" in out
    assert "against" not in out


def test_stop_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        stop(NotAnImageError("no\nimage"))
    assert caught.value.exit_code == 2
    with pytest.raises(typer.Exit):
        stop(NotAnImageError("no image"), as_json=True)
    plain, as_json = capsys.readouterr().err.splitlines()
    assert plain == "Error: no image"
    assert json.loads(as_json) == {"error": "NotAnImageError", "message": "no image"}


def test_one_line() -> None:
    assert one_line("é\x1b[31m\n\udce9") == "é\\x1b[31m\\n\\udce9"


def test_a_long_method_shows_its_own_bar():
    text = io.StringIO()
    reporter = Reporter(as_json=False, console=Terminal(file=text, force_terminal=True, width=90))
    reporter.report("before", 1, 2)  # nobody watches yet
    with reporter.working(1):
        reporter.report("maximum flows", 3, 17)
    assert "maximum flows" in text.getvalue()
    assert "3/17" in text.getvalue()
    assert "before" not in text.getvalue()


HOSTILE = "a\x1b]0;owned\x07b\x9b2Jc\u202egnp.d\nError: e"
HARMLESS = one_line(HOSTILE)


def test_nothing_commands_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")  # without bold headers
    monkeypatch.setenv("COLUMNS", "200")
    console = Terminal(file=io.StringIO(), width=200)
    reporter = Reporter(as_json=False, console=console)
    show(HOSTILE, 1)
    show(Path(HOSTILE), err=True)
    show_json({HOSTILE: HOSTILE})
    show_table((HOSTILE,), [(HOSTILE,)])
    reporter.fail(HOSTILE, ValueError(HOSTILE))
    reporter.note(HOSTILE, HOSTILE)
    reporter.say_notes()
    with stages(console) as report:
        report(HOSTILE, 1, 1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_table((HOSTILE,), [(HOSTILE,)], fold=True)
    show_table((HOSTILE,), [(HOSTILE,)])
    console.print(Text(HOSTILE), soft_wrap=True)  # what is laid out in lines keeps its own
    console.print(f"[b]{HOSTILE}", soft_wrap=True)
    said = "".join(capsys.readouterr()) + shown(console)
    assert not [c for c in said if not c.isprintable() and c not in "\n\t"]
    assert said.count(HARMLESS) == 12
    assert said.count("\nError: e") == 2


def test_a_bar_moves_the_cursor_and_its_text_does_not():
    text = io.StringIO()
    with stages(Terminal(file=text, force_terminal=True, width=200)) as report:
        report(HOSTILE, 1, 2)
    assert "\x1b[?25l" in text.getvalue()
    assert HARMLESS in text.getvalue()
    assert not {"\x07", "\x9b", "\u202e"} & set(text.getvalue())
    assert "\x1b]0" not in text.getvalue()


def test_commands_print_through_one_door():
    wrong = []
    for path in sorted(Path(door.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            prints = called in ("print", "Console") or called.endswith(
                (".echo", ".secho", "stdout.write", "stderr.write")
            )
            if prints and path.name != "console.py":
                wrong.append(f"{path.name}:{node.lineno}: {called}")
    assert not wrong, wrong
