"""Every line of Python in the README and the documentation runs, and every command line is one that exists.

The blocks of a page run one after the other, in one namespace and an empty folder, as a reader would run them. What a
page takes for granted lies there: photographs by the names that the pages use, and a few variables. A block that needs
a model hub is marked by the comment `<!-- not run: reason -->` before it; it is compiled, and its calls are held
against the signatures of what they call.
"""

import ast
import importlib
import inspect
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image, ImageOps
from torchvision import transforms

import vitrail
from vitrail.methods.registry import METHODS
from vitrail.metrics import PROTOCOLS
from vitrail.models.loading import SOURCES

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/**/*.md"))]
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
QUICK = {"docs/index.md", "docs/extend/model.md"}  # about a second; `make test-slow` runs the others


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    reason: str | None  # why it is not run
    line: int


def blocks(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [
        Block(found["language"], found["code"], found["reason"], text.count("\n", 0, found.start("code")))
        for found in FENCE.finditer(text)
    ]


def python(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


# -- Python ------------------------------------------------------------------------------------------------------------

WITH_PYTHON = [page for page in PAGES if python(page)]
ELSEWHERE = {"docs/bridges.md": "tests/bridges/test_examples.py"}  # needs Quantus, and knows what must come out
RUN = [page for page in WITH_PYTHON if page not in ELSEWHERE]


def test_blocks_are_found():
    assert {"README.md", "docs/start.md", "docs/compare.md", "docs/extend/method.md"} <= set(WITH_PYTHON)
    assert all(Path(page).name in (REPOSITORY / test).read_text(encoding="utf-8") for page, test in ELSEWHERE.items())
    assert sum(block.reason is not None for page in WITH_PYTHON for block in python(page)) <= 3


@pytest.fixture
def _own_names():
    """What a page registers is gone after it."""
    before = [(table, dict(table)) for table in (METHODS, PROTOCOLS, SOURCES)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The reader's own photographs and models: scikit-image's cat and coffee, and a ViT without its weights.

    `vitrail.load` of a published model gives the real architecture with random weights, a ViT-Ti for every other size.
    """
    data = pytest.importorskip("skimage.data")
    monkeypatch.chdir(tmp_path)
    pictures = {name: Image.fromarray(getattr(data, name)()) for name in ("chelsea", "coffee")}
    for name in ("zoo", "bird", "snail", "cat", "photo"):
        pictures["chelsea"].save(f"{name}.jpg")
    pictures["coffee"].save("zebra.jpg")
    load = vitrail.load

    def without_hub(spec: str, **options: Any) -> vitrail.VisionModel:
        missing = not Path(options.get("checkpoint", "")).is_file()  # the reader's own weights
        if spec.startswith("timm/") and missing and "pretrained" not in options:
            torch.manual_seed(0)
            options.pop("checkpoint", None)
            return load("timm/vit_tiny_patch16_224", pretrained=False, depth=2, **options)
        return load(spec, **options)

    monkeypatch.setattr(vitrail, "load", without_hub)
    torch.manual_seed(0)
    model = without_hub("timm/vit_base_patch16_224")
    images = [ImageOps.fit(pictures[name], (64, 64)) for name in ("chelsea", "coffee")]
    names = [f"class {index}" for index in range(model.module.num_classes)]
    return {
        "vitrail": vitrail,
        "model": model,
        "image": images[0],
        "images": images,
        "my_module": model.module,
        "my_transform": transforms.Compose(
            [
                transforms.Resize(224),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ]
        ),
        "names": names,
    }


@pytest.mark.usefixtures("_own_names")
@pytest.mark.parametrize(
    "page", [page if page in QUICK else pytest.param(page, marks=pytest.mark.slow) for page in RUN]
)
def test_python_runs(page: str, given: dict[str, Any]):
    names = {"__name__": "page", **given}
    for block in python(page):
        # As many lines before it as in the page, so that an error names the line there.
        code = compile("\n" * block.line + block.code, str(REPOSITORY / page), "exec")
        if block.reason is None:
            exec(code, names)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_calls_what_exists(page: str):
    for block in python(page):
        check_calls(ast.parse(block.code), f"{page}, line {block.line}")


def check_calls(tree: ast.AST, where: str) -> None:
    """Every call of an imported name has that name, and takes these arguments."""
    imported: dict[str, Any] = {"vitrail": vitrail}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] == "vitrail":
                    importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vitrail":
            module = importlib.import_module(node.module or "")
            imported |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = resolve(node.func, imported)
        spread = any(isinstance(one, ast.Starred) for one in node.args) or any(one.arg is None for one in node.keywords)
        if called is None or spread:
            continue
        try:
            inspect.signature(called).bind(*node.args, **{str(one.arg): one.value for one in node.keywords})
        except TypeError as error:
            raise AssertionError(f"{where}: {ast.unparse(node)}: {error}") from error


def resolve(node: ast.expr, imported: dict[str, Any]) -> Any:
    """What a dotted name that begins with an imported one stands for; None for other names."""
    if isinstance(node, ast.Name):
        return imported.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, imported)
        return None if owner is None else getattr(owner, node.attr)
    return None


def test_a_call_that_does_not_exist_is_found():
    for wrong in ("vitrail.explian(1)", "vitrail.compare(1, 2, methhods='all')", "vitrail.load()"):
        with pytest.raises((AssertionError, AttributeError)):
            check_calls(ast.parse(wrong), "here")


# -- command lines -----------------------------------------------------------------------------------------------------


def commands(page: str) -> list[str]:
    """Every `vitrail …` of a page: lines of its shell blocks, with their continuations, and code within sentences.

    Those within sentences, which may name a command without what it must have, begin with a space.
    """
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    lines = []
    for block in blocks(page):
        if block.language in ("", "sh", "bash", "console"):
            lines += block.code.replace("\\\n", " ").splitlines()
    prose = FENCE.sub("", text)
    lines = [line.strip() for line in lines]
    lines += [" " + " ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return [line for line in lines if re.match(r" ?vitrail\s+[a-z]", line)]


WITH_COMMANDS = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_are_understood(page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for exported in re.findall(r"^export (.+)$", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.MULTILINE):
        for name, _, value in (word.partition("=") for word in shlex.split(exported)):
            monkeypatch.setenv(name, value)
    for line in commands(page):
        for one in alternatives(line):
            parse(one)
    assert "is now called" not in capsys.readouterr().err  # an option by its former name


def alternatives(line: str) -> list[str]:
    """`vitrail bestiary draw|train` is two commands."""
    found = re.match(r"( ?vitrail(?: bestiary)?) ([\w-]+(?:\|[\w-]+)+)(.*)", line)
    return [line] if found is None else [f"{found[1]} {name}{found[3]}" for name in found[2].split("|")]


def parse(line: str) -> None:
    """Let the command itself read the line; nothing is run. `…` stands for a value, or for what was said before."""
    words = shlex.split(line, comments=True)[1:]
    kept = [word for before, word in zip(["", *words], words, strict=False) if word != "…" or before.startswith("-")]
    command: Any = typer.main.get_command(importlib.import_module("vitrail.cli").app)
    while hasattr(command, "commands"):
        name = kept.pop(0)
        assert name in command.commands, f"{line}: no command {name}"
        command = command.commands[name]
    if "--help" in kept:
        return
    try:
        command.make_context(command.name, kept)
    except Exception as error:
        shortened = line.startswith(" ") or "…" in words
        if not (shortened and type(error).__name__ == "MissingParameter"):
            raise AssertionError(f"{line}: {getattr(error, 'message', None) or error}") from error


def test_a_command_that_does_not_exist_is_found():
    for wrong in ("vitrail explian x.jpg", "vitrail explain x.jpg --tarket zebra", "vitrail bestiary paint"):
        with pytest.raises(AssertionError):
            parse(wrong)


# -- what else a page names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_and_scripts_exist(page: str):
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for block in blocks(page):
        for target in re.findall(r"^make ([\w-]+)", block.code, flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{page}: make {target}"
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for script in re.findall(r"\b((?:benchmarks|docs|tests|src)/[\w/.-]+\.(?:py|css))\b", text):
        assert (REPOSITORY / script).exists(), f"{page}: {script}"
    for module in re.findall(r"python -m ((?:benchmarks|training)\.\w+)", text):
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists(), f"{page}: {module}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    text = FENCE.sub("", (REPOSITORY / page).read_text(encoding="utf-8"))
    here = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if "://" not in target:
            assert (here / target).exists(), f"{page}: {target}"
