"""The examples of the documentation, run one after the other as a reader would."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bridges.md"


@pytest.mark.slow  # importing Quantus takes ten seconds
def test_the_examples_run_as_they_stand():
    pytest.importorskip("captum")
    with warnings.catch_warnings():
        # Docstrings of Quantus 0.6 hold "\e": a warning the first time that Python compiles them.
        warnings.filterwarnings("ignore", "invalid escape sequence")
        pytest.importorskip("quantus")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["hits"]) == 4
    assert names["scores"].shape == (4, 1, 96, 96)
    for found in (names["moved"], names["broken"]):
        assert found.shape == (4,)
        assert np.isfinite(found.numpy()).all()
