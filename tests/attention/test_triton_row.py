"""The Triton kernel, interpreted on the CPU: against the formulas written out in float64, and inside the engine."""

import importlib.util
import subprocess
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import interpreter
import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

import vitrail
from vitrail.attention import differentiate, kernels
from vitrail.attention.calls import AttentionCall
from vitrail.attention.listeners import HeadNorms
from vitrail.attention.relevance_row import QuerySum, RowUpdate, absolute, attention_backward, complete, positive

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which comes with PyTorch for NVIDIA GPUs"
)

# By the formulas alone: the kernel rounds nothing but its sums, which are in float32.
SUMS = 2e-6
# Centred, ∇A is less ⟨dO, O⟩, and the forward pass has rounded O to its own precision, at most half a unit in the last
# place: 2⁻⁹ of |O| in bfloat16, 2⁻¹² in float16. What is left of ∇A may be as small as that mean itself.
ROUNDED = {"float32": SUMS, "bfloat16": 2**-8, "float16": 2**-11}

FUNCTIONS = {
    "complete": lambda a, g: a * g,
    "positive": lambda a, g: a * np.where(g > 0, g, 0),
    "absolute": lambda a, g: a * np.abs(g),
    "norm1": lambda a, g: np.abs(g),
    "norm2": lambda a, g: g**2,
}


@pytest.fixture(scope="module")
def process():
    with interpreter.interpreter() as pool:
        yield pool


def arrays(images, heads, queries, keys, width, value_width, dtype="float32", seed=0) -> dict[str, np.ndarray]:
    """Inputs as a model of that precision has them: rounded to it, and kept in float32, which holds them exactly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> np.ndarray:
        return torch.randn(*shape, generator=generator).to(getattr(torch, dtype)).float().numpy()

    return {
        "query": draw(images, heads, queries, width),
        "key": draw(images, heads, keys, width),
        "value": draw(images, heads, keys, value_width),
        "upstream": draw(images, heads, queries, value_width),
        "row": torch.randn(images, queries, generator=generator).numpy(),
    }


def literal(given: dict[str, np.ndarray], scale: float, function: str, centred: bool) -> np.ndarray:
    """Σ_i r_i f(A_hij, ∇A_hij), every matrix in plain sight."""
    query, key, value, upstream, row = (
        given[name].astype(np.float64) for name in ("query", "key", "value", "upstream", "row")
    )
    scores = scale * np.einsum("bhic,bhjc->bhij", query, key)
    attention = np.exp(scores - scores.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    gradient = np.einsum("bhic,bhjc->bhij", upstream, value)
    if centred:
        gradient = gradient - (attention * gradient).sum(-1, keepdims=True)
    summand = FUNCTIONS[function](attention, gradient)
    return summand.sum(2) if function.startswith("norm") else np.einsum("bi,bhij->bhj", row, summand)


def check(
    process: ProcessPoolExecutor, given: dict, tolerance: float, scale: float, function: str, centred: bool, **how
):
    expected = literal(given, scale, function, centred)
    sums = process.submit(
        interpreter.sum_over_queries, given, how.pop("dtype", "float32"), scale, function, centred, **how
    ).result()
    assert sums.dtype == np.float32
    np.testing.assert_allclose(sums, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_function_on_tiles_that_do_not_divide_the_tokens(process, function):
    check(process, arrays(2, 2, 37, 37, 24, 24), SUMS, 24**-0.5, function, centred=False)


@pytest.mark.parametrize("function", ["complete", "positive", "absolute"])
def test_centred(process, function):
    check(process, arrays(1, 2, 37, 37, 16, 16), SUMS, 0.25, function, centred=True)


@pytest.mark.parametrize("width", [24, 64, 80])
def test_widths_with_and_without_padding(process, width):
    check(process, arrays(1, 1, 20, 33, width, width), SUMS, width**-0.5, "positive", centred=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("centred", [False, True])
def test_half_precision_is_summed_in_float32(process, dtype, centred):
    given = arrays(1, 2, 40, 33, 64, 64, dtype)
    # With the kernel's own statistics; those that the CPU's fused forward keeps are rounded on their way.
    tolerance = ROUNDED[dtype] if centred else SUMS
    check(process, given, tolerance, 0.125, "absolute", centred, dtype=dtype, kept=False)


def test_a_scale_that_sharpens_attention(process):
    check(process, arrays(1, 1, 33, 33, 16, 16), 1e-5, 4.0, "absolute", centred=False)


def test_a_value_wider_than_the_key_and_no_transposition(process):
    check(process, arrays(2, 1, 5, 18, 8, 40), SUMS, 0.3, "complete", centred=True, heads_last=False)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    images=st.integers(1, 2),
    heads=st.integers(1, 2),
    queries=st.integers(1, 40),
    keys=st.integers(1, 70),
    width=st.integers(1, 40),
    value_width=st.integers(1, 40),
    function=st.sampled_from(list(FUNCTIONS)),
    kept=st.booleans(),
    tiles=st.sampled_from([(16, 16), (64, 32)]),
)
def test_any_shape(process, images, heads, queries, keys, width, value_width, function, kept, tiles):
    given = arrays(images, heads, queries, keys, width, value_width, seed=queries)
    check(process, given, 1e-5, width**-0.5, function, centred=False, kept=kept, tiles=tiles)


def test_the_statistics_of_the_forward_pass_are_those_of_the_kernel(process):
    given = arrays(2, 3, 33, 40, 16, 16)
    kept, own = process.submit(interpreter.logsumexps, given, "float32", 0.7).result()
    scores = 0.7 * np.einsum("bhic,bhjc->bhij", given["query"].astype(np.float64), given["key"].astype(np.float64))
    expected = np.log(np.exp(scores).sum(-1))
    assert kept is not None
    np.testing.assert_allclose(kept, expected, rtol=1e-5)
    np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_statistics_that_mean_something_else_are_not_taken(process):
    """Should a later PyTorch keep, say, the logarithm to base two."""
    given = arrays(1, 2, 20, 20, 8, 8)
    sums, noticed = process.submit(interpreter.sum_over_wrong_statistics, given).result()
    assert noticed
    expected = literal(given, 0.3, "complete", False)
    np.testing.assert_allclose(sums, expected, rtol=0, atol=SUMS * np.abs(expected).max())


def test_the_same_inputs_give_the_same_bytes(process):
    given = arrays(2, 2, 40, 40, 16, 16, "bfloat16")
    ask = interpreter.sum_over_queries, given, "bfloat16", 0.25, "absolute", False
    assert process.submit(*ask).result().tobytes() == process.submit(*ask).result().tobytes()


@pytest.mark.parametrize(
    ("method", "launches", "options"),
    [
        ("gae", 3 * 2, {}),
        pytest.param("absolute", 3 * 2, {"centred": True}, marks=pytest.mark.slow),
        pytest.param("complete", 3 * 2, {"gradient": "libra"}, marks=pytest.mark.slow),
        ("complete", 2 * 2, {"gradient": "full", "start_layer": 1}),
        ("gmar_l2", 3 * 4, {}),  # head norms, and the row through each layer's attention
        ("rollout", 3, {}),
    ],
)
def test_the_maps_of_a_model_are_those_of_the_blocks(process, method, launches, options):
    targets = None if method == "rollout" else [[1, 2], [3, 4]]
    # A model of the tests' own: to import a library of models takes longer than all the tests here.
    asked = process.submit(interpreter.explain_both_ways, "user_patch_14", method, targets, **options)
    blocks, tiles, launched = asked.result()
    assert launched == launches
    assert np.abs(blocks).max() > 0
    np.testing.assert_allclose(tiles, blocks, rtol=0, atol=1e-5 * np.abs(blocks).max())


def test_a_model_in_half_precision(process):
    """Between the layers both ways round to bfloat16, whose unit is 2⁻⁸, at other places: a few units are left."""
    asked = process.submit(interpreter.explain_both_ways, "user_patch_14", "gae", [1, 2], dtype="bfloat16")
    blocks, tiles, launched = asked.result()
    assert launched == 3
    np.testing.assert_allclose(tiles, blocks, rtol=0, atol=4 * 2**-8 * np.abs(blocks).max())
    assert np.corrcoef(tiles.ravel(), blocks.ravel())[0, 1] > 0.9999


@pytest.mark.slow
def test_a_model_with_a_bias_on_its_scores_goes_by_blocks(monkeypatch):
    model, images = FAMILIES["timm_beit"].model(), FAMILIES["timm_beit"].images(2)
    blocks = vitrail.explain(model, images, [1, 2], method="gae").scores
    asked = []
    fit = partial(differentiate.tiles_fit, forced=True)
    monkeypatch.setattr(differentiate, "tiles_fit", lambda call, forced: asked.append(fit(call)) or asked[-1])
    # Were the kernel taken, it would refuse a CPU's tensors: nothing is interpreted here.
    assert torch.equal(vitrail.explain(model, images, [1, 2], method="gae").scores, blocks)
    assert asked == [False] * FAMILIES["timm_beit"].depth


def a_call(dtype=torch.bfloat16, width=8, mask=None, causal=False) -> AttentionCall:
    query = torch.randn(1, 2, 5, width).to(dtype)
    return AttentionCall(query, query, query, mask, causal, 0.5)


def test_what_the_kernel_does_not_serve():
    assert differentiate.tiles_fit(a_call(), forced=True)
    assert not differentiate.tiles_fit(a_call())  # on a CPU nobody asks for it
    assert not differentiate.tiles_fit(a_call(mask=torch.zeros(5, 5)), forced=True)
    assert not differentiate.tiles_fit(a_call(causal=True), forced=True)
    assert not differentiate.tiles_fit(a_call(torch.float64), forced=True)
    assert not differentiate.tiles_fit(a_call(width=257), forced=True)
    mixed = a_call()
    wide = AttentionCall(mixed.query.float(), mixed.key, mixed.value, None, False, 0.5)
    assert not differentiate.tiles_fit(wide, forced=True)


def test_without_triton_nothing_fits(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    kernels._importable.cache_clear()
    try:
        assert not differentiate.tiles_fit(a_call(), forced=True)
    finally:
        kernels._importable.cache_clear()


def test_a_kernel_that_cannot_be_built_gives_way_to_blocks(monkeypatch, caplog):
    """Here it is not interpreted, and Triton refuses a CPU's tensors: the engine goes on and says so once."""
    monkeypatch.setattr(kernels, "_FAILED", set())
    call, upstream = a_call(), torch.randn(1, 2, 5, 8).bfloat16()
    wanted = QuerySum("absolute", torch.ones(1, 5))
    for _ in range(2):
        assert kernels.sum_over_queries(call, wanted, upstream, call.output()) is None
    assert len(caplog.records) == 1
    assert "without its Triton kernel" in caplog.text
    assert (torch.bfloat16, 8, 8) in kernels._FAILED
    with pytest.raises(Exception, match="."):
        kernels.sum_over_queries(call, wanted, upstream, call.output(), forced=True)


@pytest.mark.parametrize("rule", [complete, positive, absolute])
def test_a_row_update_is_the_same_from_blocks_and_from_sums(rule):
    given = {name: torch.from_numpy(array).double() for name, array in arrays(2, 3, 6, 6, 4, 4).items()}
    call = AttentionCall(given["query"], given["key"], given["value"], None, False, 0.5)
    by_blocks, by_sums = RowUpdate(rule, given["row"], False), RowUpdate(rule, given["row"], False)
    attention_backward(call, given["upstream"], by_blocks, through_scores=False, through_value=False)
    wanted = by_sums.query_sum()
    assert wanted is not None
    held = {name: array.numpy() for name, array in given.items()}
    by_sums.take_sum(torch.from_numpy(literal(held, 0.5, wanted.function, wanted.centred)))
    torch.testing.assert_close(by_sums.result(), by_blocks.result())


def test_a_rule_of_its_own_has_no_sum():
    assert RowUpdate(lambda attention, gradient: attention, torch.ones(1, 5), False).query_sum() is None


@pytest.mark.parametrize("order", [1, 2])
def test_head_norms_leave_padding_out_of_the_sums(order):
    sums = torch.tensor([[[1.0, 4.0, 100.0], [2.0, 2.0, 100.0]]])
    norms = HeadNorms(order, torch.tensor([[True, True, False]]))
    assert norms.query_sum() == QuerySum(f"norm{order}")
    norms.take_sum(sums)
    expected = torch.tensor([[5.0, 4.0]])
    torch.testing.assert_close(norms.result(), expected if order == 1 else expected.sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 80, 256])
@pytest.mark.parametrize("centred", [False, True])
def test_it_compiles_for_a_hopper_gpu_without_spilling(width, centred, tmp_path, monkeypatch):
    """No GPU is needed to compile: what the interpreter lets pass and the compiler refuses is found here."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vitrail.attention.triton_row import _padded, _sum_over_queries, tiling

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cut = tiling(width, torch.bfloat16)
    constants = {
        "FUNCTION": "absolute", "CENTRED": centred, "WIDTH": width, "PADDED": _padded(width), "VALUE_WIDTH": width,
        "VALUE_PADDED": _padded(width), "KEYS": cut.keys, "QUERIES": cut.queries, "PRECISION": "ieee", "WIDE": False,
    }  # fmt: skip
    halves, floats = ("query", "key", "value", "upstream", "output"), ("logsumexp", "row", "sums")
    signature = dict.fromkeys(_sum_over_queries.arg_names, "i32")
    signature |= dict.fromkeys(halves, "*bf16") | dict.fromkeys(floats, "*fp32") | {"scale": "fp32"}
    signature |= dict.fromkeys(constants, "constexpr")
    place = {name: (number,) for number, name in enumerate(_sum_over_queries.arg_names)}
    aligned = [
        name for name in place if name.startswith((*halves, *floats)) and not name.startswith(("logsumexp_", "row_"))
    ]
    source = ASTSource(
        _sum_over_queries,
        signature,
        {place[name]: value for name, value in constants.items()},
        {place[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": cut.warps, "num_stages": cut.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma.mma_async" in compiled.asm["ptx"]  # Hopper's tensor cores
    assert compiled.metadata.shared <= 227 * 1024
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True).stdout
    assert " STACK:0 " in usage  # all tiles are held in registers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    """The compiled kernel, where there is something to run it on."""

    @pytest.mark.parametrize("function", FUNCTIONS)
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    @pytest.mark.parametrize("width", [64, 80, 256])
    def test_each_function(self, function, dtype, width):
        given = arrays(2, 3, 577, 300, width, width, dtype)
        tensors = {name: torch.from_numpy(array).cuda() for name, array in given.items()}
        query, key, value, upstream = (
            tensors[name].to(getattr(torch, dtype)) for name in ("query", "key", "value", "upstream")
        )
        call = AttentionCall(query, key, value.requires_grad_(), None, False, width**-0.5)
        assert differentiate.tiles_fit(call)
        row = None if function.startswith("norm") else tensors["row"]
        ask = call.detached(), QuerySum(function, row), upstream, call.output()
        once, again = kernels.sum_over_queries(*ask), kernels.sum_over_queries(*ask)
        assert once is not None
        assert again is not None
        assert torch.equal(once, again)
        expected = literal(given, width**-0.5, function, centred=False)
        # The GPU's exp2 and its sums in float32 leave less than this.
        np.testing.assert_allclose(once.cpu().numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize("method", ["complete", "gae", "absolute", "gmar_l2"])
    def test_a_model(self, method, monkeypatch):
        model = vitrail.wrap(FAMILIES["timm_vit"].build().cuda().bfloat16())
        images = FAMILIES["timm_vit"].images(2).cuda()
        launched = []
        plain = kernels.sum_over_queries
        monkeypatch.setattr(differentiate, "sum_over_queries", lambda *a, **k: launched.append(1) or plain(*a, **k))
        tiles = vitrail.explain(model, images, [1, 2], method=method).scores
        assert launched
        assert not kernels._FAILED
        monkeypatch.setattr(differentiate, "tiles_fit", lambda call, forced: False)
        blocks = vitrail.explain(model, images, [1, 2], method=method).scores
        torch.testing.assert_close(tiles, blocks, rtol=0, atol=4 * 2**-8 * float(blocks.abs().max()))
