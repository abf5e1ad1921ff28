"""The phrases that the project's vocabulary has replaced stay out of sources, help texts and documentation."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PHRASES = (
    "so many",
    "gone on with",
    "that is none",
    "that are none",
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
