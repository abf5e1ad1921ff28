"""The words of the command line: names that have changed, --output, the environment, and what a terminal is told."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import vitrail.cli
from vitrail.cli import app, console
from vitrail.cli.console import Reporter, one_line, show_table
from vitrail.cli.inputs import Found, OutputNames, destination
from vitrail.errors import OptionError, UnknownMethodError
from vitrail.methods import find_method

Run = Callable[..., Result]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.effect_noise((180, 200), 80).convert("RGB").save(tmp_path / "zoo.png")
    return tmp_path / "zoo.png"


RENAMED = [
    ("explain", "--batch", "--batch-size", "2"), ("guide", "--fit", "--resize-mode", "pad"),
    ("guide", "--most", "--guide-limit", "3"), ("transfer", "--opposing", "--against", "zebra"),
    ("transfer", "--at", "--figure-step", "4"), ("transfer", "--every", "--frame-interval", "2"),
    ("rewrite", "--step", "--step-size", "0.1"), ("rewrite", "--at", "--resolution", "input"),
    ("reproduce", "--count", "--limit", "5"), ("evaluate", "--fit", "--resize-mode", "squash"),
    ("evaluate", "--block", "--block-size", "2"), ("evaluate", "--keep", "--num-previews", "9"),
    ("bench", "--batch", "--batch-size", "8"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "old", "new", "value"), RENAMED)
def test_former_names_work_and_say_the_present_one(
    command: str, old: str, new: str, value: str, capsys: pytest.CaptureFixture[str]
):
    one: Any = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    first = ["x", "--model", "bestiary", *(["--target", "tavel"] if command == "rewrite" else [])]
    words = [] if command == "bench" else first
    for given in ([old, value], [f"{old}={value}"]):
        assert (
            one.make_context(command, [*words, *given]).params == one.make_context(command, [*words, new, value]).params
        )
        assert capsys.readouterr().err == f"note: {old} is now called {new}\n"
    one.make_context(command, [*words, old, value, "--json"])
    assert capsys.readouterr().err == ""
    assert old not in {name for parameter in one.params for name in parameter.opts}


def test_weights_of_the_environment_stay_with_their_model(monkeypatch: pytest.MonkeyPatch):
    one: Any = typer.main.get_command(app).commands["explain"]  # type: ignore[attr-defined]
    monkeypatch.setenv("VITRAIL_MODEL", "timm/test_vit")
    monkeypatch.setenv("VITRAIL_CHECKPOINT", "w.safetensors")

    def given(*words: str) -> tuple[str, Path | None]:
        params = one.make_context("explain", ["x.png", *words]).params
        return params["model"], params["checkpoint"]

    weights = Path("w.safetensors")
    assert given() == ("timm/test_vit", weights)
    assert given("--model", "timm/test_vit") == ("timm/test_vit", weights)
    assert given("--model", "bestiary") == ("bestiary", None)  # whose weights they are not
    assert given("--model", "bestiary", "-c", "v.safetensors") == ("bestiary", Path("v.safetensors"))
    monkeypatch.delenv("VITRAIL_MODEL")
    assert given("--model", "bestiary") == ("bestiary", weights)


def test_output_is_a_folder_or_a_file(tmp_path: Path):
    (tmp_path / "v1.png").mkdir()
    assert destination(tmp_path / "new", ("png",)).folder == tmp_path / "new"
    assert destination(tmp_path / "run.v2", ("png",)).file is None
    assert destination(tmp_path / "v1.png", ("png",)).file is None  # there is a folder of that name
    place = destination(tmp_path / "deep" / "a.PNG", ("png", "svg"), ("svg", "png"))
    assert (place.folder, place.file) == (tmp_path / "deep", tmp_path / "deep" / "a.PNG")
    names = OutputNames(place.folder, [Found(Path("zoo.jpg"), Path("zoo"))], place.file)
    image = Found(Path("zoo.jpg"), Path("zoo"))
    written = [
        names.path(image, "zebra", "png"),
        names.path(image, "zebra", "svg"),
        names.path(image, "x", "svg", "gae"),
    ]
    assert [path.name for path in written] == ["a.PNG", "a.svg", "a.gae.svg"]
    for path, writes, asked in (("a.mp4", ("png",), ()), ("a.html", (), ()), ("a.png", ("png", "pdf"), ("pdf",))):
        with pytest.raises(OptionError, match=f"--output .*{path}"):
            destination(tmp_path / path, writes, asked)
    with pytest.raises(OptionError, match="is one file, and there are 2 images"):
        OutputNames(tmp_path, [image, Found(Path("b.jpg"), Path("b"))], tmp_path / "a.png")
    with pytest.raises(OptionError, match="is the image itself"):
        OutputNames(tmp_path, [image], Path("zoo.jpg")).path(image, "zebra", "jpg")


def test_one_figure_into_a_file_and_jpg(command: Run, photo: Path, tmp_path: Path):
    result = command("explain", photo, "-t", "zebra", "-o", "fig/zebra.jpg", "--json")
    assert (result.exit_code, json.loads(result.stdout)["results"][0]["files"]) == (0, ["fig/zebra.jpg"])
    with Image.open(tmp_path / "fig" / "zebra.jpg") as picture:
        assert picture.format == "JPEG"
    refused = command("explain", photo, photo.with_name("other.png"), "-o", "zebra.png")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "--output zebra.png is one file, and there are 2 images: name a folder" in refused.stderr


def test_names_of_results_can_be_shown(tmp_path: Path):
    images = [Found(Path(name), Path(name)) for name in ("a\n\x1b[31mb", "c\udce9", "a__[31mb")]
    names = OutputNames(tmp_path, images)
    assert [names.path(one, "zebra", "png").name for one in images] == [
        "a__[31mb.zebra.png", "c_.zebra.png", "a__[31mb-2.zebra.png",
    ]  # fmt: skip


def test_notes_are_counted(capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(as_json=False)
    for number in range(40):
        reporter.note(f"{number}.png", f"the guide has 0.{number} % of the map")
    reporter.note("7.png", "another note")
    reporter.say_notes()
    assert capsys.readouterr().err == "0.png and 39 more: the guide has 0.0 % of the map\n7.png: another note\n"


def test_a_row_is_one_line_of_relative_paths_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    long = tmp_path / ("n" * 90) / "zebra.png"
    show_table(("image", "files"), [(tmp_path / "zoo.png", (long, Path("/elsewhere/a.png")))])
    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == ["zoo.png", f"{'n' * 90}/zebra.png,", "/elsewhere/a.png"]


def test_near_matches_of_methods():
    for wrong, right in (("complet", "complete"), ("Attn-GradCAM", "attn_gradcam"), ("roll_out", "rollout")):
        with pytest.raises(UnknownMethodError, match=f"did you mean {right}"):
            find_method(wrong, {})


# -- the end of a run --------------------------------------------------------------------------------------------------


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Any:
    def fails(*words: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(vitrail.cli, "app", fails)
    with pytest.raises(SystemExit) as caught:
        vitrail.cli.main()
    return caught.value.code


def test_errors_that_nobody_foresaw_are_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert ended(monkeypatch, RuntimeError("odd\n\x1b[31mthing")) == 70
    assert capsys.readouterr().err.startswith("Error: RuntimeError: odd \\x1b[31mthing (not foreseen")
    assert ended(monkeypatch, OSError(28, "No space left on device")) == 1
    assert capsys.readouterr().err == "Error: No space left on device\n"
    monkeypatch.setenv("VITRAIL_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="odd"):
        ended(monkeypatch, RuntimeError("odd"))


@pytest.mark.parametrize(
    "words", [["\x1b]0;a\x07"], ["explain", "--\x9b2J"], ["explain", "a", "--format", "\u202ea\nb"]]
)
def test_words_that_cannot_be_used_command_no_terminal(words: list[str]):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert all(c.isprintable() or c == "\n" for c in result.output)
    assert one_line(words[-1]) in result.output


def test_warnings_command_no_terminal(monkeypatch: pytest.MonkeyPatch):
    said = []

    def warn(**options: Any) -> None:
        said.append(warnings.formatwarning("\x1b[2J", UserWarning, "a", 1))  # type: ignore[arg-type]

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(vitrail.cli, "app", warn)
    vitrail.cli.main()
    assert r"UserWarning: \x1b[2J" in said[0]


def test_ctrl_c_is_a_sentence(command: Run, photo: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*words: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrail.cli.image_run.load_named", interrupted)
    result = command("explain", photo)
    assert (result.exit_code, result.stderr) == (130, "interrupted: every file that was written is whole\n")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"{sys.executable} -c 'from vitrail.cli import main; main()'"
    return subprocess.run(
        ["bash", "-c", line.replace("vitrail", code)], capture_output=True, text=True, env=os.environ | environment
    )


def test_closed_pipes_and_outputs_are_quiet():
    for line in ("vitrail --help | head -1", "vitrail --help >&-", "vitrail --help 2>&-"):
        result = shell(line)
        assert (result.returncode, result.stderr) == (0, ""), line
    full = shell("vitrail --version > /dev/full")
    assert (full.returncode, full.stderr.count("\n")) == (1, 1)
    assert "Traceback" not in full.stderr


def test_letters_that_a_terminal_lacks_have_a_like():
    result = shell("vitrail detail --help", PYTHONIOENCODING="latin-1", COLUMNS="200")
    assert (result.returncode, result.stderr) == (0, "")
    assert vitrail.cli._simple(UnicodeEncodeError("latin-1", "−1 … ∇", 0, 6, "")) == ("-1 ... \\u2207", 6)


def test_what_is_loaded_is_said_at_once(command: Run, photo: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    from vitrail.cli import options

    class Watched:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(options, "sys", type("System", (), {"stderr": Watched()}))
    monkeypatch.setattr(options.typer, "echo", lambda text, err=False: said.append(text))
    monkeypatch.setattr("vitrail.cli.explain.run", lambda request: said.append("run") or False)
    command("explain", photo)
    assert said == ["loading timm/test_vit …", "run"]


def test_an_experiment_says_what_it_needs():
    result = CliRunner().invoke(app, ["reproduce", "fig9", "-t", "3"], env={"VITRAIL_MODEL": ""})
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "Error: fig9 (typical) needs images; --target, --against, each once or once per image"
    )
    assert "Not given: IMAGE... and --model. Alone, fig9 is drawn of images found in --photos" in result.stderr
    assert console.one_line(result.stderr.strip()) == result.stderr.strip()
