"""The page on errors quotes what the code says: every title is a message of `src/`, word for word."""

import ast
import re
from functools import cache
from pathlib import Path

from vitrail import errors

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "troubleshooting.md"
GAP = "…"  # what a title shows where the message names a number, a class or a file


@cache
def messages() -> dict[str, set[str]]:
    """All texts in the source, each f-string with `GAP` for what it fills in, and the errors that are made of them."""
    found: dict[str, set[str]] = {}
    for file in sorted((REPOSITORY / "src" / "vitrail").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if (text := words(node)) is not None:
                found.setdefault(text, set())
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                for part in ast.walk(node):
                    if (text := words(part)) is not None:
                        found.setdefault(text, set()).add(node.func.id)
    return found


def words(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def sections() -> dict[str, str]:
    """What stands under each title that quotes a message."""
    found = re.split(r"^## `(.+)`$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_every_title_is_a_message_of_the_code():
    assert len(sections()) >= 20
    assert [title for title in sections() if not any(title in message for message in messages())] == []


def test_every_title_has_the_error_that_it_is_raised_with_and_a_remedy():
    for title, body in sections().items():
        named = re.findall(r"\*\*`(\w+)`\*\*", body)
        raised = set().union(*(kinds for message, kinds in messages().items() if title in message))
        assert len(named) == 1, title
        assert issubclass(getattr(errors, named[0]), errors.VitrailError)
        assert named[0] in raised or not raised, f"{title} is raised as {raised}"
        assert len(body.split()) > 15, f"{title}: {body}"


def test_every_error_has_an_entry():
    """`VitrailError` and `MethodError` are raised by none but their subtypes."""
    public = {
        name for name in errors.__all__ if isinstance(one := getattr(errors, name), type) and issubclass(one, Exception)
    }
    told = set(re.findall(r"\*\*`(\w+)`\*\*", PAGE.read_text(encoding="utf-8")))
    assert public - told == {"VitrailError", "MethodError"}
