"""The sheet of the perturbation curves: every word in its place, every curve where its numbers are."""

from itertools import combinations

import numpy as np
import pytest
import torch

from vitrail.experiments.perturbation import COLOURS, Block, CurveSet, Drawn, draw_perturbation
from vitrail.experiments.stitched_perturbation import MAPS, RANDOM, REGIONS, WAYS, Curve, areas
from vitrail.metrics.aggregation import Interval, bootstrap


@pytest.fixture(scope="module")
def curves() -> list[CurveSet]:
    generator = torch.Generator().manual_seed(0)
    asked = [Curve(name, way, region) for name in MAPS for way in WAYS for region in REGIONS]
    found = []
    for one in [*asked, Curve(RANDOM, RANDOM, REGIONS[0])]:
        hits = (torch.rand(12, 10, generator=generator) < 0.3).double()
        found.append(CurveSet(one, hits, bootstrap(areas(list(hits)))))
    return found


def test_words_do_not_overlap_and_curves_are_the_means(curves):
    models = ("tiny", "large")
    maps = {name: torch.linspace(-1, 1, 16).reshape(4, 4) for name in MAPS}
    differences = {"complete less gae, negative, anywhere": Interval(0.1, -0.05, 0.2, 12)}
    words = "12 photographs, labels from boxes.csv; guide: zebra"
    names = ("African hunting dog", "zebra")
    examples = [Drawn(torch.rand(3, 64, 64), maps, names, model) for model in models]
    figure = draw_perturbation([Block(curves, one, differences, words) for one in examples])
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in figure.texts if text.get_text()]
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0
    for one, other in combinations(boxes, 2):
        assert not one.padded(-2).overlaps(other.padded(-2))
    panels = [axes for axes in figure.axes if len(axes.lines) >= len(MAPS)]
    assert len(panels) == len(models) * len(WAYS) * len(REGIONS)
    assert len({axes.get_ylim() for axes in panels}) == 1  # one scale
    drawn = [np.asarray(line.get_ydata(), dtype=float) for axes in panels for line in axes.lines]
    for one in curves:
        mean = one.hits.mean(dim=0).numpy()
        assert any(len(line) == 10 and np.allclose(line, mean) for line in drawn)
    words = " ".join(text.get_text() for text in figure.texts)
    assert "+0.100 [−0.050, +0.200]" in words
    assert all(name in words for name in (*COLOURS, *models))
    assert all(f"({letter}) " in words for letter in "abcd")
    assert words.index("(a) negative") < words.index("(b) positive")  # as in the paper
