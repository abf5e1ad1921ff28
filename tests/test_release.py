"""What a release promises: public names with their parameters, and what the wheel holds.

`python tests/test_release.py` writes tests/public_api.txt anew: a reviewer then sees in the difference what changes for
users, and the changelog tells it.
"""

import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
WRITTEN = Path(__file__).with_name("public_api.txt")
MODULES = (
    "vitrail",
    *(
        f"vitrail.{name}"
        for name in (
            "errors", "models", "methods", "methods.registry", "methods.context", "objectives", "outputs", "provenance",
            "views", "guidance", "counterfactual", "shares", "multimodal", "text", "generation", "plotting", "metrics",
            "metrics.protocol", "evaluate", "audit", "datasets", "report", "bridges", "bestiary", "experiments",
            "benchmark",
        )
    ),
)  # fmt: skip
LARGEST = 15_000_000  # bytes of the wheel


def public_api() -> Iterator[str]:
    """Each public name with the names and defaults of its parameters; of a class also its methods and fields."""
    told: dict[int, str] = {}
    for module in MODULES:
        found = importlib.import_module(module)
        for name in sorted(found.__all__):
            value, full = getattr(found, name), f"{module}.{name}"
            if callable(value) and id(value) in told:
                yield f"{full} = {told[id(value)]}"
            else:
                told[id(value)] = full
                yield from _told(full, value)


def _told(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_parameters(value)}" if inspect.isroutine(value) else name
        return
    bases = [base.__name__ for base in value.__mro__[1:] if base.__module__.startswith("vitrail")]
    yield f"{name}{_parameters(value)}" + f": {', '.join(bases)}" * bool(bases)
    own = {member: of for base in reversed(value.__mro__) if _ours(base) for member, of in vars(base).items()}
    if issubclass(value, Exception) or issubclass(value, Enum):
        return
    for member in sorted(own):
        if not member.startswith("_"):
            of = own[member]
            callable_ = inspect.isfunction(of) or isinstance(of, staticmethod | classmethod)
            yield f"  {name.rpartition('.')[2]}.{member}{_parameters(getattr(value, member)) if callable_ else ''}"


def _ours(base: type) -> bool:
    return base.__module__.startswith("vitrail")


def _parameters(of: Any) -> str:
    try:
        parameters = inspect.signature(of).parameters.values()
    except (TypeError, ValueError):
        return ""
    words, named = [], False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not named:
            words.append("*")
        named |= one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        words.append(f"{star}{one.name}" + (f"={_value(one.default)}" if one.default is not one.empty else ""))
    return f"({', '.join(words)})"


def _value(value: Any) -> str:
    plain = isinstance(value, bool | int | float | str | tuple | None.__class__)
    return re.sub(r" at 0x\w+", "", repr(value)) if plain else "…"


def test_public_names_are_those_that_were_released() -> None:
    changed = set(WRITTEN.read_text().splitlines()) ^ set(public_api())
    assert not changed, "run python tests/test_release.py, and tell it in the changelog"


def test_versions_agree() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (REPOSITORY / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < LARGEST
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"vitrail"}
    listed = subprocess.run(
        ["git", "ls-files", "src"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {f"src/{name}" for name in names if ".dist-info" not in name} == set(listed)
    for kept in ("app/page.js", "report/page.html", "bestiary/weights/bestiary.safetensors", "py.typed"):
        assert f"vitrail/{kept}" in names


if __name__ == "__main__":
    WRITTEN.write_text("\n".join(public_api()) + "\n")
