"""The pages on evaluation say what the registries say, and their Python runs."""

import re
from pathlib import Path

import pytest

from vitrail.evaluate.cost import cost_of
from vitrail.evaluate.plan import PRESETS
from vitrail.metrics import list_protocols

DOCS = Path(__file__).parents[2] / "docs"


def protocols_table() -> str:
    lines = ["| protocol | measures | needs | signed | forward passes | maps |", "|---|---|---|---|---|---|"]
    for info in list_protocols():
        cost = cost_of(info.name)
        signed = "yes" if info.signed else ""
        lines.append(
            f"| `{info.name}` | {info.summary} | {', '.join(info.needs)} | {signed} | {cost.rows:g} | {cost.maps} |"
        )
    return "\n".join(lines)


def presets_table() -> str:
    lines = ["| preset | protocols | explains | pictures | what it is |", "|---|---|---|---|---|"]
    lines += [
        f"| `{preset.name}` | {', '.join(preset.protocols)} | {preset.target} | {preset.fit} | {preset.summary} |"
        for preset in PRESETS.values()
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("table", [protocols_table, presets_table])
def test_the_tables_are_those_of_the_registries(table):
    expected = table()
    assert expected in (DOCS / "evaluate.md").read_text(encoding="utf-8"), f"docs/evaluate.md wants:\n{expected}"


@pytest.mark.parametrize("page", ["evaluate.md", "scale-out.md"])
def test_the_python_of_the_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
