"""The project's vocabulary: replaced phrases stay out of sources and documentation, docstrings open with a verb."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PHRASES = (
    "so many",
    "gone on with",
    "that is none",
    "how-manieth",
    "beside the map",
    "beside each other",
    "told block by block",
    "is told of every",
    "one door to every",
    "who works long lets",
    "costs a line on stderr",
    "at the door",
    "passed over",
    "taken out of the image",
    "black from the start",
    "asked against each other",
    "of each actor",
    "which is what",
    "what was heard",
    "no opinion",
)


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_replaced_phrase_is_not_back(phrase: str):
    pattern = re.compile(r"\s+(?:#\s*)?".join(map(re.escape, phrase.split())), re.IGNORECASE)  # over ends of lines too
    files = [*REPOSITORY.glob("src/**/*.py"), *REPOSITORY.glob("docs/**/*.md"), REPOSITORY / "README.md"]
    assert len(files) > 300
    found = [str(path.relative_to(REPOSITORY)) for path in files if pattern.search(path.read_text(encoding="utf-8"))]
    assert found == []


# The first line of these is a summary that a list, a table or `--help` shows, not a sentence on what the function does.
SUMMARISED = ("register_method", "register_protocol", "register_objective", "register_experiment", "_command")


def openings(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and docstrings of public functions and methods, those of a public class included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from openings(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            text = ast.get_docstring(node)
            if text is None or any(name in decorators + node.name for name in SUMMARISED):
                continue
            if "contextmanager" in decorators and re.match(r"(Within|In) th(e|is) block", text):
                continue
            yield prefix + node.name, text
        elif isinstance(node, ast.If | ast.Try):
            yield from openings(node, prefix)


def test_docstrings_open_with_a_verb_in_the_third_person():
    found = [
        f"{path.relative_to(REPOSITORY)}: {name}: {text.splitlines()[0]}"
        for path in sorted(REPOSITORY.glob("src/vitrail/**/*.py"))
        for name, text in openings(ast.parse(path.read_text(encoding="utf-8")))
        if not re.match(r"(?!This\b)[A-Z][a-z]+s\b", text)
    ]
    assert found == []
