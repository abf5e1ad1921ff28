"""Every error names what exists where it is raised: an option of that command, an argument of that function.

The texts are read from the source. In the library they name arguments as Python does (`target=`), and the commands say
them in their own words; in the command's own modules they name options. In the page's they name its controls.
"""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer

import vitrail
from vitrail.app.fragments import CONTROLS, on_page
from vitrail.cli import app
from vitrail.errors import how_to_install, reworded
from vitrail.methods.registry import METHODS
from vitrail.metrics import PROTOCOLS

PACKAGE = Path(vitrail.__file__ or "").parent
ARGUMENT = re.compile(r"(?<![\w.=/?&'\"{-])([a-z][a-z0-9_]*)=(?!=)")
OPTION = re.compile(r"(?<!`ray start )(?<![\w-])--[a-z][a-z-]*")
# Functions that make errors of their arguments, beside the errors themselves.
MAKERS = {"needs", "refuse_texts", "missing_package", "BadParameter", "Refused", "problem", "nothing"}
# Where arguments come from, whatever module refuses them in the end.
ENTRIES = (
    "vitrail.explain.explain", "vitrail.compare.compare", "vitrail.models.load", "vitrail.models.wrap",
    "vitrail.plan.plan", "vitrail.text.explain_text", "vitrail.guidance.Guide", "vitrail.guidance.detail",
    "vitrail.evaluate.evaluate", "vitrail.evaluate.open_data", "vitrail.counterfactual.transfer",
    "vitrail.counterfactual.rewrite", "vitrail.multimodal.explain_pair", "vitrail.experiments.Question",
    "vitrail.plotting.figure.draw", "vitrail.benchmark.run.Plan", "vitrail.bridges.CaptumAttribution.attribute",
    "vitrail.models.vision_model.VisionModel", "vitrail.generation.explain_generation",
)  # fmt: skip
# Options of `vitrail.load` that go on to the library, and of that library's own function.
PASSED_ON = {"pretrained", "img_size", "attn_implementation", "scale"}  # the last is of torchvision's ToDtype
CALL = re.compile(r"[\w.]+\((?:[^()]|\([^()]*\))*\)")
MARK = "[only in Python: "
LACKING = MARK + "{names}]"


def text_of(node: ast.AST) -> str:
    """The text of a string or f-string, what is put in as `{…}`."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) if isinstance(value, ast.Constant) else "{…}" for value in values)
        case ast.BinOp(left=left, right=right):
            return text_of(left) + text_of(right)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{text_of(body)} {text_of(orelse)}"
    return ""


@cache
def trees() -> dict[str, ast.Module]:
    """The modules of the package, read once."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


@cache
def texts() -> list[tuple[str, int, str]]:
    """(file, line, text) of every message that an error is made of."""
    found = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            if name.endswith("Error") or name in MAKERS:
                text = " ".join(filter(None, map(text_of, node.args)))
                found += [(file, node.lineno, text)] if text else []
    return found


@cache
def strings() -> list[tuple[str, int, str]]:
    """(file, line, text) of every string that is not a docstring: parts of messages lie in variables, too."""
    found = []
    for file, tree in trees().items():
        nodes = list(ast.walk(tree))
        apart = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:  # what `vitrail reproduce --list` shows is in the command's words
            wants = isinstance(node, ast.keyword) and node.arg == "wants"
            if wants or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WANTS"):
                apart |= {id(one) for one in ast.walk(node)}
        found += [
            (file, node.lineno, node.value)
            for node in nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart
        ]
    return found


@cache
def commands() -> dict[str, Any]:
    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for inner, one in command.commands.items():
                yield from walk(f"{name} {inner}".strip(), one)
        else:
            yield name, command

    return dict(walk("", typer.main.get_command(app)))


def options(command: Any) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}


def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


@cache
def everywhere() -> frozenset[str]:
    """Arguments of the public entry points, of methods and of protocols."""
    names: set[str] = set()
    for dotted in ENTRIES:
        parts = dotted.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                owner: Any = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                owner = getattr(owner, part)
            names |= arguments(owner)
            break
    for info in (*METHODS.values(), *PROTOCOLS.values()):
        names |= set(info.options)
    return frozenset(names)


@cache
def of_module(file: str) -> set[str]:
    """Arguments of public functions, and dataclass fields of what a module defines."""
    names: set[str] = set()
    for node in ast.walk(trees()[file]):
        if isinstance(node, ast.FunctionDef) and not (node.name.startswith("_") and node.name != "__init__"):
            names |= {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_the_texts_are_found():
    assert len(texts()) > 400
    assert sum(bool(ARGUMENT.search(text)) for _, _, text in texts()) > 100


def test_the_library_names_no_option_of_a_command():
    wrong = [
        f"{file}:{line}: {text}"
        for file, line, text in strings()
        if not file.startswith(("cli/", "app/", "benchmark/")) and OPTION.search(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_arguments_that_the_library_names_exist():
    wrong = [
        f"{file}:{line}: {name}= in: {text}"
        for file, line, text in texts()
        if not file.startswith("cli/")
        for name in ARGUMENT.findall(text)
        if name not in everywhere() | of_module(file) | PASSED_ON
    ]
    assert not wrong, "\n".join(wrong)


def test_options_that_the_command_names_exist_on_it():
    wrong = []
    for file, line, text in texts():
        if not file.startswith(("cli/", "app/")):
            continue
        on = owners(file)
        for option in OPTION.findall(text):
            lacking = [name for name in on if option not in options(commands()[name])]
            wrong += [f"{file}:{line}: {lacking} has no {option}: {text}"] if lacking else []
    assert not wrong, "\n".join(wrong)


def owners(file: str) -> list[str]:
    """The commands whose errors are raised in a file; those that share `inputs` or `options` must all have them."""
    if file.startswith("app/"):
        return ["app"]
    stem = file.removeprefix("cli/").removesuffix(".py")
    of_work = {"run_progress": "evaluate", "estimate": "explain"}
    shared = {
        "inputs": ["explain", "compare", "detail", "guide"],
        "options": ["explain"],
        "request": ["explain", "guide"],
    }
    if stem in shared:
        return shared[stem]
    name = of_work.get(stem, stem)
    return [one for one in commands() if one == name or one.startswith(f"{name} ")]


def test_every_text_can_be_said_by_every_command():
    """What a command makes of the library's texts names options that it has, or says that it has none."""
    wrong = []
    for name, command in commands().items():
        for file, line, text in texts():
            if file.startswith(("cli/", "app/")) or not ARGUMENT.search(text):
                continue
            said = reworded(text, command.argument, LACKING)
            body, _, note = said.partition(MARK)
            lacking = set(OPTION.findall(body)) - options(command)
            kept = set(ARGUMENT.findall(re.sub(r"--option \S+", "", CALL.sub("", body))))
            if lacking or not all(f"{argument}=" in note for argument in kept):
                wrong.append(f"vitrail {name}, {file}:{line}: {sorted(lacking | kept)} in: {said}")
    assert not wrong, "\n".join(wrong[:40])


# What is said before the page is there, on the command line, and what the page writes to be pasted into a shell.
NOT_ON_THE_PAGE = ("app/admission.py", "app/exports.py")
QUOTED = re.compile(r"“([^”]+)”|[Pp]ress (?:<b>)?([^<.:;,]+)")


def page_texts() -> list[tuple[str, int, str]]:
    """(file, line, text) of every message that the page's own modules make."""
    return [one for one in texts() if one[0].startswith("app/") and one[0] not in NOT_ON_THE_PAGE]


@cache
def labels() -> frozenset[str]:
    """What is written on the page's controls: in its template, and in what is filled in."""
    page = (PACKAGE / "app/page.html").read_text(encoding="utf-8")
    found = {one.strip() for one in re.findall(r"<(?:button|label|strong|legend)\b[^>]*>([^<>{}]+)(?=<)", page)}
    for path in sorted((PACKAGE / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "_combo":
                found |= {text_of(one) for one in node.args}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("DRAW", "TITLES"):
                found |= {text_of(one) for one in getattr(node.value, "values", ())}
            elif isinstance(node, ast.Constant | ast.JoinedStr):
                found |= set(re.findall(r"<(?:button|label|strong)\b[^>]*>([^<>{}]+)<", text_of(node)))
    return frozenset(found)


def test_the_pages_texts_and_controls_are_found():
    assert len(page_texts()) > 25
    assert {"Gradient", "Why this class?", "A guide of your own", "Stop", "Map", "Copy link"} <= labels()


def test_the_page_names_no_option_and_no_argument():
    wrong = [
        f"{file}:{line}: {text}"
        for file, line, text in strings()
        if file.startswith("app/") and file not in NOT_ON_THE_PAGE and OPTION.search(text.replace("--vt-", ""))
    ]
    wrong += [f"{file}:{line}: {text}" for file, line, text in page_texts() if ARGUMENT.search(text)]
    script = (PACKAGE / "app/page.js").read_text(encoding="utf-8").replace("--vt-", "")
    assert not [*wrong, *OPTION.findall(script)], "\n".join(wrong)


def test_controls_that_the_page_names_exist():
    named = {f"{file}:{line}: {text}": QUOTED.findall(text) for file, line, text in page_texts()}
    named |= {f"CONTROLS[{name!r}]": [(label, "")] for name, label in CONTROLS.items()}
    wrong = [
        f"{where}: {label}"
        for where, found in named.items()
        for label in map("".join, found)
        if "{…}" not in label and not any(one.startswith(label) for one in labels())
    ]
    assert not wrong, "\n".join(wrong)
    assert sum(map(bool, named.values())) >= len(CONTROLS) + 3  # messages that name some


def test_every_text_can_be_said_on_the_page():
    """What the page makes of the library's texts names its controls, or says that only Python has such a thing."""
    wrong = []
    for file, line, text in texts():
        if file.startswith(("cli/", "app/")) or not ARGUMENT.search(text):
            continue
        body, _, note = on_page(text).rpartition("(")
        kept = set(ARGUMENT.findall(CALL.sub("", body or note)))
        calls = [call for call in CALL.findall(body) if "=" in call]
        told = "in Python, by whoever runs this page" in note
        if OPTION.search(body) or ((kept or calls) and not told) or not all(f"{one}=" in note for one in kept):
            wrong.append(f"{file}:{line}: {on_page(text)}")
    assert not wrong, "\n".join(wrong[:40])


def test_whatever_the_page_shows_of_an_error_passes_one_door():
    """No view writes an error's own text: `problem`, `notes` and `on_page` put it in the page's words."""
    wrong = []
    for path in sorted((PACKAGE / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "escape":
                inside = ast.unparse(node)
                if re.search(r"str\((?:\w+\.)?(?:error|failure)\)", inside) and "on_page" not in inside:
                    wrong.append(f"{path.name}:{node.lineno}: {inside}")
    assert not wrong, "\n".join(wrong)


SAID = """
explain: objective='ratio' compares: say against= which → --objective ratio compares: say --against which
explain: readout=(0, 99) is no patch → --readout 0,99 is no patch
explain: variant='new' is neither → --option variant=new is neither
explain: centred=True is not defined for raw → --centred is not defined for raw
explain: 25 tokens fit no grid: give grid= → 25 tokens fit no grid: give grid= [only in Python: grid=]
explain: give wrap(…, preprocess=P(…)) → give wrap(…, preprocess=P(…)) [only in Python: wrap()]
explain: a == b, https://x/?a=b, x==1 → a == b, https://x/?a=b, x==1
compare: masks=0 must be 1 or more → --option tis.masks=0 must be 1 or more
transfer: opposing='a b' is the target: opposing= → --against 'a b' is the target: --against
rewrite: at='here' is not one of photograph, input → --resolution here is not one of photograph, input
guide: fit="crop" has no mean: give fit="squash" → --resize-mode crop has no mean: give --resize-mode squash
evaluate: another output=, or output="logits" → another --output, or --output-kind logits
evaluate: give boxes=, masks= or labels= → give --boxes, --masks or --labels
"""


@pytest.mark.parametrize("line", SAID.strip().splitlines())
def test_texts_in_the_words_of_a_command(line: str):
    command, text, said = re.match(r"(\w+): (.*) → (.*)", line).groups()  # type: ignore[union-attr]
    assert reworded(text, commands()[command].argument, LACKING) == said


def test_python_names_that_differ_lead_to_options_that_exist():
    for name, command in commands().items():
        for argument, option in command.python.items():
            assert option in options(command), f"vitrail {name}: {argument}= is {option}"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, 'pip install "vitrail[app]"'),
        ({"url": "file:///home/my%20clone", "dir_info": {"editable": True}}, 'pip install -e "/home/my clone[app]"'),
        ({"url": "file:///tmp/clone", "dir_info": {}}, 'pip install "vitrail[app] @ file:///tmp/clone"'),
        ({"url": "https://x/v.git", "vcs_info": {"vcs": "git"}}, 'pip install "vitrail[app] @ git+https://x/v.git"'),
    ],
)  # fmt: skip
def test_installing_is_told_as_vitrail_is_installed(told: Any, expected: str, monkeypatch: pytest.MonkeyPatch):
    class Installed:
        def read_text(self, name: str) -> str | None:
            return None if told is None else json.dumps(told)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert how_to_install("app") == expected


def test_no_text_writes_an_install_command_of_its_own():
    wrong = [f"{file}:{line}: {text}" for file, line, text in texts() if re.search(r"vitrail\[", text)]
    assert not wrong, "\n".join(wrong)
