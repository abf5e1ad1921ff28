"""The forms that `target=` takes: lists of every kind, one-hot rows, WordNet ids, functions, and what is refused."""

import re
from collections import deque
from enum import Enum

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from torch import nn

import vitrail
from vitrail.errors import ObjectiveError, TargetCountError, TargetError, UnknownClassError, VitrailError
from vitrail.targets import parse_targets

NAMES = ("cat", "dog", "bald eagle, American eagle", "kite", "5 o'clock", "snail", "conch")


@pytest.fixture(scope="module")
def model():
    return vitrail.wrap(FAMILIES["timm_vit"].build(), class_names=NAMES)


@pytest.fixture(scope="module")
def images():
    return FAMILIES["timm_vit"].images(batch=2)


def parsed(model, wanted, images=2, **more):
    found = parse_targets(model, wanted, images, len(NAMES), **more)
    assert found is not None
    return found.index.tolist(), found.nested


ONE_HOT = torch.nn.functional.one_hot(torch.tensor([1, 3]), 7)


@pytest.mark.parametrize(
    "wanted",
    [
        [torch.tensor(1), torch.tensor(3)],
        (np.int64(1), np.uint8(3)),
        np.array([1, 3], dtype=np.int16),
        np.array(["dog", "kite"]),
        np.array(["dog", 3], dtype=object),
        torch.tensor([1, 3]),
        deque([1, "kite"]),
        (index for index in (1, 3)),
        range(1, 4, 2),
        map(str, (1, 3)),
        {"a": 1, "b": 3}.values(),
        ONE_HOT,
        ONE_HOT.numpy().astype(np.uint8),
        ONE_HOT.bool(),
    ],
    ids=lambda one: type(one).__name__,
)
def test_one_per_image(model, wanted):
    assert parsed(model, wanted) == ([[1], [3]], False)


@pytest.mark.parametrize("index", [None, [5, 9], ["a", "b"]])
def test_a_series_counts_by_its_order(model, index):
    pandas = pytest.importorskip("pandas")
    assert parsed(model, pandas.Series([1, 3], index=index)) == ([[1], [3]], False)
    assert parsed(model, pandas.Series(["dog", "kite"], index=index)) == ([[1], [3]], False)
    assert parsed(model, pandas.DataFrame({"x": [1, 3], "y": [2, 4]}).to_numpy()) == ([[1, 2], [3, 4]], True)


@pytest.mark.parametrize("wanted", [torch.tensor(3), np.array(3), np.int64(3), "3", "kite", " KITE ", np.str_("kite")])
def test_one_for_all(model, wanted):
    assert parsed(model, wanted) == ([[3], [3]], False)


@pytest.mark.parametrize(
    "wanted",
    [[[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]]), [np.array([1, 2]), torch.tensor([3, 4])], [(1, 2), {3: 0}]],
)
def test_several_per_image(model, wanted):
    if any(isinstance(one, dict) for one in wanted):
        with pytest.raises(TargetError, match="no order"):
            parsed(model, wanted)
    else:
        assert parsed(model, wanted) == ([[1, 2], [3, 4]], True)


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (True, TargetError, "is no class"),
        (np.array([True, False]), TargetError, "truth values"),
        (1.0, TargetError, "is no class"),
        (np.float32(1), TargetError, "float32 numbers"),
        (torch.tensor([1.0, 3.0]), TargetError, r"float32 numbers.*target.long\(\)"),
        (torch.tensor([1.0, 3.0], dtype=torch.bfloat16), TargetError, "bfloat16 numbers"),
        (ONE_HOT.float(), TargetError, "float32 numbers"),
        ([float("nan"), 1], TargetError, "nan"),
        (-1, UnknownClassError, "0 to 6"),
        (7, UnknownClassError, "0 to 6"),
        (10**30, UnknownClassError, "0 to 6"),
        ("9" * 6000, UnknownClassError, "is called"),
        ("+-9", UnknownClassError, "is called"),
        ([], TargetCountError, "lists 0 for 2"),
        ((_ for _ in ()), TargetCountError, "lists 0 for 2"),
        ([[], []], TargetCountError, "lists 0 targets"),
        ({1, 3}, TargetError, "no order"),
        ({"a": 1}, TargetError, "no order"),
        (b"kite", TargetError, "is no class"),
        (int, TargetError, "is no class"),
        (object(), TargetError, "is no class"),
        ([[[1]], [[2]]], TargetError, "nested more than twice"),
        (ONE_HOT + ONE_HOT.flip(0), TargetError, "one-hot rows have one"),
        (ONE_HOT.tolist(), TargetError, "zeros and ones"),
        ("n01440764", UnknownClassError, "is called"),
        (lambda output: output[0], TargetError, "cannot be asked about here"),
    ],
    ids=lambda one: one if isinstance(one, str) and len(one) < 60 else getattr(one, "__name__", type(one).__name__),
)
def test_what_is_no_target(model, wanted, error, message):
    with pytest.raises(error, match=message):
        parsed(model, wanted)


def test_zeros_and_ones_of_two_classes_could_mean_either():
    two = vitrail.wrap(nn.Identity(), class_names=("a", "b"))
    with pytest.raises(TargetError, match=r"target.argmax\(1\) for the first, target.tolist\(\) for the second"):
        parse_targets(two, torch.tensor([[0, 1], [1, 0]]), 2, 2)
    found = parse_targets(two, [[0, 1], [1, 0]], 2, 2)
    assert found is not None
    assert found.index.tolist() == [[0, 1], [1, 0]]


class Endless(list):
    """A list that holds itself."""

    def __init__(self):
        super().__init__([self])


def test_what_never_ends_is_refused(model):
    from itertools import count

    for wanted in (count(), Endless(), [Endless()]):
        with pytest.raises(VitrailError):
            parsed(model, wanted)


class TestWordNet:
    def test_an_id_is_a_class_of_imagenet(self):
        vit = vitrail.load("timm/vit_tiny_patch16_224", pretrained=False)
        assert vit.class_index("n02391049") == vit.class_index("zebra") == 340
        assert parse_targets(vit, ["n02391049", "n01440764"], 2, 1000).index.tolist() == [[340], [0]]
        with pytest.raises(UnknownClassError, match="n99999999"):
            vit.class_index("n99999999")

    def test_of_other_classes_it_is_none(self, model):
        names = tuple(f"thing {number}" for number in range(1000))
        with pytest.raises(UnknownClassError):
            vitrail.wrap(nn.Identity(), class_names=names).class_index("n02391049")
        own = vitrail.wrap(nn.Identity(), class_names=("n01440764", "n02391049"))
        assert own.class_index("n02391049") == 1


class ClassifierOutputTarget:
    """As pytorch-grad-cam 1.5 has it."""

    def __init__(self, category):
        self.category = category

    def __call__(self, model_output):
        return model_output[self.category] if len(model_output.shape) == 1 else model_output[:, self.category]


class ClassifierOutputSoftmaxTarget(ClassifierOutputTarget):
    def __call__(self, model_output):
        return torch.softmax(model_output, dim=-1)[self.category]


def squares(output):
    return output.square().sum()


class TestFunctions:
    @pytest.mark.parametrize("method", ["complete", "gae", "attn_gradcam", "lrp", "tis"])
    def test_one_class_is_that_class(self, model, images, method):
        options = {"masks": 2} if method == "tis" else {}
        expected = vitrail.explain(model, images, [1, 3], method=method, **options)
        targets = [ClassifierOutputTarget(1), ClassifierOutputTarget(3)]
        found = vitrail.explain(model, images, targets, method=method, **options)
        assert torch.equal(found.scores, expected.scores)
        assert [one.question() for one in found] == [one.question() for one in expected]
        assert found.objective == expected.objective

    @pytest.mark.parametrize("method", ["complete", "gae", "gradcam", "iia"])
    def test_any_other_function_is_its_objective(self, model, images, method):
        options = {"samples": 2} if method == "iia" else {}
        expected = vitrail.explain(
            model, images, objective=lambda logits: torch.softmax(logits, dim=-1)[:, 3], method=method, **options
        )
        found = vitrail.explain(model, images, ClassifierOutputSoftmaxTarget(3), method=method, **options)
        assert torch.equal(found.scores, expected.scores)

    @pytest.mark.parametrize(
        "function",
        [
            lambda o: o[3].clamp(max=50),
            lambda o: o[3].relu(),
            lambda o: o.max(),
            lambda o: 2 * o[3],
            lambda o: o[3] + 1,
        ],
    )
    def test_what_only_looks_like_one_class_is_no_class(self, model, function):
        found = parse_targets(model, function, 1, len(NAMES), functions=True)
        assert found is not None
        assert found.index.tolist() == [[-1]]
        assert found.function(0, 0) is function

    def test_the_caption_says_what_was_asked(self, model, images):
        logits = model.module(images).detach()
        ex = vitrail.explain(model, images, [ClassifierOutputSoftmaxTarget(3), squares])
        assert ex.target.tolist() == [-1, -1]
        assert ex.objective == "function"
        share, sum_of_squares = float(logits[0].softmax(0)[3]), float(logits[1].square().sum())
        assert ex[0].question() == f"ClassifierOutputSoftmaxTarget(category=3) = {share:.3g}"
        assert ex[1].question() == f"squares = {sum_of_squares:.3g}"
        assert ex.probability(-1) is None
        assert (
            vitrail.explain(model, images, lambda o: o.max()).question()
            == f"a function of the output = {logits[0].max():.3g}"
        )

    def test_beside_classes_and_several_for_an_image(self, model, images):
        expected = vitrail.explain(model, images, [[1, 3], [2, 5]], compete=False)
        squared = vitrail.explain(model, images, squares)
        ex = vitrail.explain(model, images, [[1, squares], [squares, 5]])
        assert torch.equal(ex.scores[0, 0], expected.scores[0, 0])
        assert torch.equal(ex.scores[1, 1], expected.scores[1, 1])
        torch.testing.assert_close(ex.scores[0, 1], squared.scores[0])
        torch.testing.assert_close(ex.scores[1, 0], squared.scores[1])
        assert ex.question(0, 0).startswith("dog ")
        assert ex.question(0, 1).startswith("squares = ")

    def test_in_batches_and_in_a_file(self, model, images, tmp_path):
        whole = vitrail.explain(model, images, [squares, ClassifierOutputTarget(2)])
        parts = vitrail.explain(model, images, [squares, ClassifierOutputTarget(2)], batch_size=1)
        torch.testing.assert_close(parts.scores, whole.scores)
        again = vitrail.Explanation.load(whole.save(tmp_path / "one.safetensors"))
        assert again[0].question() == whole[0].question()

    def test_a_model_that_ends_in_a_softmax_hands_over_its_probabilities(self, images):
        module = nn.Sequential(FAMILIES["timm_vit"].build(), nn.Softmax(-1)).eval()
        ex = vitrail.explain(module, images, lambda shares: shares[1] * shares[2])
        shares = module(images)
        assert ex.metadata["functions"][0][0][1] == pytest.approx((shares[0, 1] * shares[0, 2]).item(), rel=1e-4)

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda output: output, "a tensor of shape"),
            (lambda output: 3.0, "returned float"),
            (lambda output: output[99], "failed on an output of 7 numbers: IndexError"),
            (lambda output: output.argmax(), "a tensor of shape"),
        ],
    )
    def test_what_is_no_scalar(self, model, images, function, message):
        with pytest.raises(ObjectiveError, match=message):
            vitrail.explain(model, images, function)

    def test_what_a_function_cannot_be_combined_with(self, model, images):
        with pytest.raises(VitrailError, match="leave objective= out"):
            vitrail.explain(model, images, squares, objective="probability")
        with pytest.raises(ObjectiveError, match="against= means nothing"):
            vitrail.explain(model, images, squares, against=1)
        with pytest.raises(TargetError, match="cannot be asked about here"):
            vitrail.explain(model, images, squares, guide="auto")


def test_compare_and_detail_take_the_same_forms(model, images):
    found = vitrail.compare(model, images[:1], torch.tensor([1, 3]), methods="complete")
    assert found.target.tolist() == [1, 3]
    from vitrail.guidance.detail import detail

    assert detail(model, images[:1], 1, np.array([2, 3])).pairs == ((1, 2), (1, 3))


def test_tables_and_enums_are_read_by_what_they_hold():
    pandas = pytest.importorskip("pandas")
    model = vitrail.wrap(nn.Identity(), class_names=NAMES)

    class Own(Enum):
        KITE, CAT = "kite", "cat"

    assert parse_targets(model, [Own.KITE, Own.CAT], 2, 7).index.tolist() == [[3], [0]]
    table = pandas.DataFrame([[3, 1], [0, 2]], columns=["cat", "dog"])  # the columns are no targets
    assert parse_targets(model, table, 2, 7).index.tolist() == [[3, 1], [0, 2]]


scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(max_size=8)),
    *(st.binary(max_size=4), st.integers(-2, 8), st.decimals(), st.fractions(), st.dates()),
    *(st.integers(0, 6).map(torch.tensor), st.integers(0, 6).map(np.int32), st.floats(0, 6).map(torch.tensor)),
    st.sampled_from(["kite", "n01440764", "0", "-1", " 3 ", "\uff15", "cat, dog"]),
)
arrays = st.one_of(
    np_st.arrays(np_st.scalar_dtypes(), np_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7)),
    np_st.arrays(np.int64, st.sampled_from([(2,), (2, 2), (2, 7), (2, 1)]), elements=st.integers(-1, 7)),
    np_st.arrays(np.int64, (2, 7), elements=st.integers(0, 1)).map(torch.from_numpy),
    np_st.arrays(np.float32, (2,)).map(torch.from_numpy),
)
leaves = scalars | arrays
targets = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.lists(inner, max_size=3).map(iter)
    | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(targets)
def test_any_target_is_read_as_it_says_or_refused(wanted):
    """No foreign error, and every index that comes out is one that a plain reading of the same words gives."""
    model = vitrail.wrap(nn.Identity(), class_names=NAMES)
    kept = None if read_once(wanted) else wanted
    try:
        found = parse_targets(model, wanted, 2, len(NAMES))
    except VitrailError:
        return
    if found is None:
        assert wanted is None
        return
    assert 0 <= int(found.index.min()) <= int(found.index.max()) < len(NAMES)
    assert len(found.index) == 2
    if kept is not None:
        assert found.index.tolist() == plainly(kept)


def read_once(wanted):
    if isinstance(wanted, list | tuple):
        return any(map(read_once, wanted))
    return hasattr(wanted, "__next__")


def plainly(wanted):
    """The indices by the simplest words: what each item names, by itself."""
    if isinstance(wanted, str) or np.ndim(wanted) == 0:
        return [[index_of(wanted)]] * 2
    rows = [list(one) if np.ndim(one) else one for one in wanted]
    if isinstance(wanted, np.ndarray | torch.Tensor) and wanted.ndim == 2 and wanted.shape[1] == len(NAMES):
        lists = np.asarray(wanted).astype(int).tolist()
        if sorted(set(sum(lists, []))) == [0, 1] and all(sum(row) == 1 for row in lists):
            return [[row.index(1)] for row in lists]
    return [[index_of(one) for one in row] if isinstance(row, list) else [index_of(row)] for row in rows]


def index_of(one):
    if isinstance(one, str):
        names = [name.split(",")[0].casefold() for name in NAMES]
        word = " ".join(one.casefold().split())
        if word in names or one.strip().isdecimal():
            return names.index(word) if word in names else int(one)
        words = re.sub(r"\W+", " ", word).strip()
        [found] = [i for i, name in enumerate(NAMES) if f" {words} " in f" {re.sub(r'[^a-z0-9]+', ' ', name.lower())} "]
        return found
    assert not isinstance(one, bool | float | complex)
    return int(one)
