"""The result: its words, its maps, its slices and its file."""

import copy
import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from safetensors.torch import save_file

from vitrail.comparison import Compared, Comparison
from vitrail.errors import ExplanationFileError, OptionError, OutputFileError, VitrailError
from vitrail.explanation import Explanation
from vitrail.objectives import Rivals
from vitrail.plotting import overlay
from vitrail.provenance import from_metadata
from vitrail.text import TextExplanation

NAMES = ("crane, lifting machine", "African elephant, Loxodonta africana", "zebra", "crane, wading bird", "kite")


def make(*, targets: int | None = None, against: bool = False, batch: int = 2, **changes: Any) -> Explanation:
    generator = torch.Generator().manual_seed(0)
    leading = (batch,) if targets is None else (batch, targets)
    fields: dict[str, Any] = {
        "scores": torch.randn(*leading, 3, 4, generator=generator),
        "logits": torch.tensor([[0.0, 1.0, 4.0, 0.5, -9.0]]).repeat(batch, 1),
        "target": torch.full(leading, 2),
        "against": torch.full(leading, 1) if against else None,
        "method": "complete",
        "objective": "logit",
        "class_names": NAMES,
        "images": torch.randint(0, 256, (batch, 24, 32, 3), dtype=torch.uint8, generator=generator),
        "metadata": {
            "model": "tiny",
            "sources": [f"{i}.jpg" for i in range(batch)],
            "notes": [],
            "options": {"start_layer": 0},
        },
    }
    fields |= changes
    return Explanation(provenance=from_metadata(fields.pop("metadata")), **fields)


def same(a: Explanation, b: Explanation) -> None:
    for name in ("scores", "logits", "target", "against", "images"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            assert left.shape == right.shape
            assert left.numpy().tobytes() == right.numpy().tobytes()
    for name in ("method", "objective", "signed", "class_names", "metadata"):
        assert getattr(a, name) == getattr(b, name)


# -- the question ----------------------------------------------------------------------------------------------------


def test_question_is_target_and_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, 4.0, 0.5, -9.0]])
    zebra, elephant = 100 * logits.softmax(-1)[0, [2, 1]]
    assert make().question() == f"zebra {zebra:.1f} %"
    assert make(against=True).question() == f"zebra {zebra:.1f} % against African elephant {elephant:.1f} %"
    assert make(targets=3, against=True).question(1, 2) == make(against=True).question()


def test_question_tells_two_classes_of_one_name_apart() -> None:
    ex = make(target=torch.tensor([0, 3]))
    assert ex.question(0).startswith("crane (0) ")
    assert ex.question(1).startswith("crane (3) ")


def test_question_without_names_or_beyond_them() -> None:
    assert make(class_names=None).question().startswith("class 2 ")
    assert make(class_names=("one",)).question().startswith("class 2 ")


def test_question_never_rounds_to_certainty() -> None:
    sure = make(logits=torch.tensor([[0.0, 0.0, 12.0], [0.0, 0.0, -12.0]]), class_names=("a", "b", "c"))
    assert sure.question(0) == "c >99.9 %"
    assert sure.question(1) == "c <0.1 %"
    half = make(
        logits=torch.tensor([[0.0, 0.0, 12.0], [0.0, 0.0, -12.0]], dtype=torch.bfloat16), class_names=("a", "b", "c")
    )
    assert half.question(0) == "c >99.9 %"


def test_question_of_a_regression_is_its_value() -> None:
    ex = make(logits=torch.tensor([[2.5], [-1.0]]), target=torch.tensor([0, 0]), class_names=("age",))
    assert ex.question(0) == "age = 2.5"
    assert ex.question(1) == "age = -1"


# -- the map ---------------------------------------------------------------------------------------------------------


def test_upsample_defaults_to_the_images_and_keeps_the_raw_values() -> None:
    ex = make()
    expected = torch.nn.functional.interpolate(ex.scores[:, None], (24, 32), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(ex.upsample(), expected)
    assert torch.equal(ex.upsample((3, 4)), ex.scores)
    assert torch.equal(ex.upsample((6, 8), mode="nearest")[:, ::2, ::2], ex.scores)
    assert make(targets=5).upsample((7, 9), mode="bicubic").shape == (2, 5, 7, 9)
    assert make(scores=ex.scores.double()).upsample().dtype == torch.float64


def test_upsample_to_a_square() -> None:
    assert torch.equal(make().upsample(16), make().upsample((16, 16)))


def test_upsample_refusals() -> None:
    with pytest.raises(OptionError, match=r"needs a size \(height, width\)"):
        make(images=None).upsample()
    for size, told in (((0, 4), "0 x 4"), (-3, "-3 x -3")):
        with pytest.raises(OptionError, match=told):
            make().upsample(size)


def test_map_selects_image_and_target() -> None:
    ex = make(targets=3)
    assert torch.equal(ex.map(1, 2), ex.scores[1, 2])
    assert torch.equal(make().map(1), make().scores[1])
    with pytest.raises(IndexError):
        make().map(0, 1)


# -- one image at a time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [None, 1, 3])
def test_iteration_gives_batches_of_one(targets: int | None) -> None:
    ex = make(targets=targets, against=True, batch=3)
    parts = list(ex)
    assert len(ex) == len(parts) == 3
    for i, part in enumerate(parts):
        same(part, ex[i : i + 1])
        assert torch.equal(part.scores, ex.scores[i : i + 1])
        assert part.question() == ex.question(i)
        assert part.metadata["sources"] == [f"{i}.jpg"]
        assert part.metadata["model"] == "tiny"
    same(ex[-1], parts[-1])
    same(ex[:], ex)
    with pytest.raises(IndexError, match="image 3 of an explanation of 3"):
        ex[3]


def test_what_belongs_to_one_image_stays_with_it() -> None:
    notes = {"notes": ["of all"], "image_notes": [["of the first"], []], "difference_instead": [[True], [False]]}
    ex = make(metadata={"sources": ["a.jpg", None], **notes})
    assert ex.notes() == ["of all", "a.jpg: of the first"]
    assert ex[0].notes() == ["of all", "of the first"]
    assert ex[1].notes() == ["of all"]
    assert ex[1].metadata["difference_instead"] == [[False]]
    assert make(metadata={}).notes() == []


def test_a_note_of_several_images_is_said_once() -> None:
    names = [f"{i}.jpg" for i in range(5)]
    ex = make(batch=5, metadata={"sources": names, "image_notes": [["a", "b"], ["a"], ["a"], ["a"], ["a", "c"]]})
    assert ex.notes() == ["All images: a", "0.jpg: b", "4.jpg: c"]
    ex = make(batch=5, metadata={"sources": names, "image_notes": [["a"], [], ["a"], ["a"], ["a"]]})
    assert ex.notes() == ["4 of 5 images (0.jpg, 2.jpg, 3.jpg, …): a"]
    assert ex[3].notes() == ["a"]


def test_the_gradient_mode_and_the_competition_are_said() -> None:
    assert make(metadata={"gradient": "full"}).gradient_words() == "full gradient"
    assert make(metadata={"gradient": "full", "uses_gradient": False}).gradient_words() == ""
    assert make(metadata={}).gradient_mode() is None
    ex = make(metadata={"gradient": "libra"})
    rivals = Rivals(torch.tensor([[1]] * 2), torch.ones(2, 1), torch.zeros_like(ex.scores))
    assert "class competition" not in repr(ex)
    assert "libra gradient, class competition" in repr(replace(ex, rivals=rivals))


# -- other forms -----------------------------------------------------------------------------------------------------


def test_numpy_reads_the_scores() -> None:
    ex = make(targets=2)
    assert np.array_equal(np.asarray(ex), ex.scores.numpy())
    assert np.asarray(ex, dtype=np.float64).dtype == np.float64
    np.asarray(ex)[:] = 0
    assert ex.scores.abs().sum() > 0


def test_a_data_frame_has_a_row_per_patch() -> None:
    frame = make(targets=2, against=True).to_dataframe()
    assert len(frame) == 2 * 2 * 3 * 4
    row = frame.iloc[1 * 24 + 1 * 12 + 2 * 4 + 3]  # image 1, target 1, row 2, column 3
    ex = make(targets=2, against=True)
    expected = {
        "image": 1,
        "source": "1.jpg",
        "target": 2,
        "target_name": "zebra",
        "against": 1,
        "against_name": "African elephant",
        "row": 2,
        "col": 3,
        "score": ex.scores[1, 1, 2, 3].item(),
    }
    assert row.to_dict() == expected
    assert "against" not in make().to_dataframe()


def test_without_pandas_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(OptionError, match="pip install pandas"):
        make().to_dataframe()


def test_an_overlay_is_a_picture_of_the_images_size() -> None:
    ex = make(targets=2)
    picture = ex.overlay(1, 1)
    assert (picture.size, picture.mode) == ((32, 24), "RGB")
    expected = overlay(ex.scores[1, 1].double().numpy(), ex.images[1].numpy())  # type: ignore[index]
    assert np.array_equal(np.asarray(picture), expected)
    assert ex.overlay(size=(10, 20)).size == (20, 10)
    assert ex.overlay(size=10).size == (10, 10)
    assert make(images=None).overlay().size == (64, 48)
    with pytest.raises(IndexError):
        ex.overlay(2)


@pytest.mark.parametrize("kind", ["png", "jpg", "JPEG", "pdf", "svg"])
def test_a_picture_is_saved_by_its_ending(tmp_path: Path, kind: str) -> None:
    path = make(batch=1).save(tmp_path / f"zebra.{kind}")
    start = {"png": b"\x89PNG", "jpg": b"\xff\xd8\xff", "jpeg": b"\xff\xd8\xff", "pdf": b"%PDF", "svg": b"<?xml"}
    assert path.read_bytes().startswith(start[kind.lower()])


def test_only_a_figure_has_a_look(tmp_path: Path) -> None:
    small, usual = make(batch=1).save(tmp_path / "small.png", side=1.5), make(batch=1).save(tmp_path / "usual.png")
    with Image.open(small) as one, Image.open(usual) as other:
        assert one.height < other.height
    with pytest.raises(OptionError, match="side: only a figure has these"):
        make().save(tmp_path / "map.safetensors", side=2)


def test_plot_writes_where_a_path_is_given(tmp_path: Path) -> None:
    figure = make(batch=1).plot(tmp_path / "plot.png")
    assert figure.axes
    assert (tmp_path / "plot.png").read_bytes() == make(batch=1).save(tmp_path / "saved.png").read_bytes()
    with pytest.raises(OptionError, match=r"name it \.png"):
        make().plot(tmp_path / "plot.bmp")


def test_a_notebook_shows_the_figure_and_escapes_names() -> None:
    shown = make(batch=1, class_names=("a", "b", "<img src=x onerror=alert(1)>", "d", "e"))._repr_html_()
    assert "data:image/png;base64," in shown
    assert "<img src=x" not in shown
    assert "&lt;img src=x" in shown


def test_notebooks_show_comparisons_and_texts_too() -> None:
    compared = Compared(
        label="complete",
        method="complete",
        signed=True,
        class_specific=True,
        level="patch",
        passes="1F 1B",
        seconds=0.1,
        explanation=make(batch=1, targets=1),
    )
    sheet = Comparison(answers=(compared,), logits=torch.zeros(5), target=torch.tensor([2]), class_names=NAMES)
    words = TextExplanation(
        texts=("not bad",),
        tokens=(("not", "bad"),),
        special=((False, False),),
        spans=(((0, 0, 3), (0, 4, 7)),),
        answer=make(batch=1, scores=torch.tensor([[[-0.25, 0.5]]]), images=None, metadata={"image_notes": [[]]}),
    )
    for one in (sheet, words):
        assert one._repr_html_().startswith('<figure style="margin: 0"><img src="data:image/png;base64,')


def test_explanation_is_frozen_and_copies_its_metadata() -> None:
    given_metadata = {"model": "tiny"}
    ex = make(metadata=given_metadata)
    given_metadata["model"] = "changed"
    assert ex.metadata["model"] == "tiny"
    with pytest.raises(FrozenInstanceError):
        ex.method = "gae"  # type: ignore[misc]
    same(pickle.loads(pickle.dumps(ex)), ex)
    same(copy.deepcopy(ex), ex)


def test_repr_is_short() -> None:
    assert repr(make(batch=1)) == f"Explanation(complete of logit, 1 image, 3 x 4 patches, {make().question()})"
    assert repr(make(targets=2)) == "Explanation(complete of logit, 2 images, 2 targets each, 3 x 4 patches)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.zeros(2, 12)}, r"scores must be .* not \(2, 12\)"),
        ({"target": torch.tensor([1, 2, 3])}, r"target is \(3,\), but scores of \(2, 3, 4\) need \(2,\)"),
        ({"against": torch.tensor([[1], [2]])}, r"against is \(2, 1\)"),
        ({"logits": torch.zeros(1, 5)}, r"logits is \(1, 5\), .* need \(2, 5\)"),
        ({"images": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}, r"images is \(1, 8, 8, 3\)"),
    ],
)
def test_shapes_that_disagree(changes: dict[str, torch.Tensor], message: str) -> None:
    # As a user meets it, who runs without the type-checking hook of these tests.
    bare = object.__new__(Explanation)
    for name, value in (vars(make()) | changes).items():
        object.__setattr__(bare, name, value)
    with pytest.raises(ValueError, match=message):
        bare.__post_init__()


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load_bit_for_bit(tmp_path: Path, targets: int | None, dtype: torch.dtype) -> None:
    ex = make(targets=targets, against=targets is None)
    ex = replace(ex, scores=ex.scores.to(dtype))
    path = ex.save(tmp_path / "new" / "map.safetensors")
    same(Explanation.load(path), ex)
    assert [p.name for p in path.parent.iterdir()] == ["map.safetensors"]
    assert ex.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_save_of_views_and_without_the_optional_parts(tmp_path: Path) -> None:
    base = torch.randn(2, 4, 3)
    ex = make(
        scores=base.mT,
        images=None,
        class_names=None,
        metadata={"file": "caf\udce9 ☃.jpg"},
        target=torch.tensor(2).expand(2),
    )
    same(Explanation.load(ex.save(tmp_path / "map.safetensors")), ex)


@settings(max_examples=20, deadline=None)
@given(values=arrays("float32", (1, 2, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_any_float_survives_the_file(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    ex = make(batch=1, scores=torch.from_numpy(values))
    same(Explanation.load(ex.save(tmp_path_factory.mktemp("any") / "map.safetensors")), ex)


def test_save_refusals(tmp_path: Path) -> None:
    with pytest.raises(OutputFileError, match=r"zebra\.npz: name it \.safetensors .* or \.png, .* or \.svg"):
        make().save(tmp_path / "zebra.npz")
    with pytest.raises(OutputFileError, match="not plain JSON values"):
        make(metadata={"dtype": torch.float32}).save(tmp_path / "map.safetensors")
    with pytest.raises(OutputFileError, match="not plain JSON values"):
        make(metadata={"share": float("nan")}).save(tmp_path / "map.safetensors")
    with pytest.raises(OutputFileError, match="scores hold NaN or infinity"):
        make(batch=1, scores=torch.full((1, 3, 4), float("nan"))).save(tmp_path / "map.safetensors")
    assert list(tmp_path.iterdir()) == []


def _absent(path: Path) -> None: ...


def _folder(path: Path) -> None:
    path.mkdir()


def _text(path: Path) -> None:
    path.write_text("not tensors")


def _truncated(path: Path) -> None:
    make().save(path)
    path.write_bytes(path.read_bytes()[:-100])


def _weights(path: Path) -> None:
    save_file({"head.weight": torch.zeros(2, 2)}, path)


def _later(path: Path) -> None:
    save_file({"scores": torch.zeros(1, 2, 2)}, path, metadata={"vitrail": json.dumps({"version": 99})})


def _wrong_shapes(path: Path) -> None:
    header = {"version": 1, "method": "gae", "objective": "logit", "signed": True, "class_names": None, "metadata": {}}
    tensors = {"scores": torch.zeros(1, 2, 2), "logits": torch.zeros(1, 3), "target": torch.zeros(7, dtype=torch.long)}
    save_file(tensors, path, metadata={"vitrail": json.dumps(header)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_absent, "cannot read .*bad.safetensors"),
        (_folder, "cannot read .*bad.safetensors"),
        (_text, "cannot read .*bad.safetensors"),
        (_truncated, "cannot read .*bad.safetensors"),
        (_weights, "not an explanation: its header has no 'vitrail' entry"),
        (_later, "version 99, this Vitrail reads up to 4; update Vitrail"),
        (_wrong_shapes, "not an explanation that Vitrail can read: .*target"),
    ],
)
def test_load_refusals(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "bad.safetensors"
    damage(path)
    with pytest.raises(ExplanationFileError, match=f"(?s){message}") as caught:
        Explanation.load(path)
    assert isinstance(caught.value, VitrailError)


HEADER = {"version": 1, "method": "gae", "objective": "logit", "signed": True, "class_names": None, "metadata": {}}
TENSORS = {"scores": torch.ones(1, 2, 2), "logits": torch.zeros(1, 3), "target": torch.zeros(1, dtype=torch.long)}


@pytest.mark.parametrize(
    ("tensors", "header", "said"),
    [
        ({"scores": torch.full((1, 2, 2), float("nan"))}, {}, "scores hold NaN or infinity"),
        ({"logits": torch.tensor([[0.0, float("inf"), 1.0]])}, {}, "logits hold NaN or infinity"),
        ({"scores": torch.ones(1, 0, 2)}, {}, r"scores are \(1, 0, 2\)"),
        ({"logits": torch.ones(1, 0)}, {}, r"logits \(1, 0\)"),
        ({"scores": torch.ones(1, 2, 2, dtype=torch.int64)}, {}, r"scores are torch\.int64"),
        ({"target": torch.zeros(1)}, {}, r"target are torch\.float32"),
        ({"target": torch.tensor([3])}, {}, "target 3 is no class of 3"),
        ({"target": torch.tensor([-1])}, {}, "target -1 is no class of 3"),
        ({"against": torch.tensor([10**9])}, {}, "against 1000000000 is no class of 3"),
        ({"images": torch.zeros(1, 4, 4, 3)}, {}, r"images are torch\.float32"),
        ({"other": torch.zeros(1)}, {}, "other"),
        ({}, {"metadata": []}, "metadata holds list, expected dict"),
        ({}, {"metadata": None}, "metadata holds NoneType"),
        ({}, {"class_names": "abc"}, "class_names holds str, expected list"),
        ({}, {"class_names": [1, 2, 3]}, "class_names holds int, expected str"),
        ({}, {"method": 3}, "method holds int, expected str"),
        ({}, {"version": "one"}, "not an explanation that Vitrail can read"),
        ({}, {"guided": 3}, "guided holds int"),
        ({}, {"guided": [{}]}, "scores"),
        ({}, "[" * 50_000, "not an explanation that Vitrail can read"),
        ({}, "[]", "not an explanation that Vitrail can read"),
        ({}, "{}", "it has no entry 'version'"),
    ],
)
def test_a_file_that_holds_what_no_explanation_does_is_refused(tmp_path, tensors, header, said):
    path = tmp_path / "bad.safetensors"
    text = header if isinstance(header, str) else json.dumps(HEADER | header)
    save_file(TENSORS | tensors, path, metadata={"vitrail": text})
    with pytest.raises(ExplanationFileError, match=f"bad.safetensors.*{said}") as caught:
        Explanation.load(path)
    assert "Traceback" not in str(caught.value)


def test_a_pipe_and_a_nul_are_refused_and_the_plain_file_is_read(tmp_path):
    path = tmp_path / "ex.safetensors"
    save_file(TENSORS, path, metadata={"vitrail": json.dumps(HEADER)})
    assert Explanation.load(path).grid == (2, 2)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ExplanationFileError, match="it is not a regular file"):
        Explanation.load(tmp_path / "pipe.safetensors")
    with pytest.raises(ExplanationFileError, match="it is no path"):
        Explanation.load("a\0b.safetensors")
