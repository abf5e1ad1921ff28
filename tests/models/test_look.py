"""The first look at a model: no order of tokens, no mixing and no chance passes unnoticed.

Models as people write them, small enough to be read here. Those whose tokens lie otherwise give the map of their plain
twin; those that no map of attention explains are refused, and the remedy that the error names works.
"""

import pytest
import reference
import torch
from families import CLASSES, Block, FusedAttention, WrittenOutAttention, enliven
from torch import Tensor, nn

import vitrail
from vitrail.errors import (
    LayoutError,
    ModelError,
    NoAttentionError,
    NoSignalError,
    OptionError,
    UnsupportedAttentionError,
)
from vitrail.models.layout import layout_of

ROWS, COLS, PATCH, WIDTH = 4, 6, 8, 24


def images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, ROWS * PATCH, COLS * PATCH, generator=torch.Generator().manual_seed(5))


class Plain(nn.Module):
    """Patches, positions, two blocks, the mean of the patches; the tokens in the order of `order`."""

    def __init__(self, order: Tensor | None = None, attention: type = FusedAttention, tokens: int = 0) -> None:
        super().__init__()
        self.embed = self.stem()
        self.order = torch.arange(ROWS * COLS) if order is None else order
        self.position = nn.Parameter(torch.zeros(1, ROWS * COLS, WIDTH))
        self.extra_tokens = nn.Parameter(torch.zeros(1, tokens, WIDTH))
        self.blocks = nn.ModuleList(Block(WIDTH, attention(WIDTH, 2)) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def stem(self) -> nn.Module:
        return nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def tokens(self, x: Tensor) -> Tensor:
        x = (self.embed(x).flatten(2).transpose(1, 2) + self.position)[:, self.order]
        return torch.cat([self.extra_tokens.expand(len(x), -1, -1), x], dim=1)

    def between(self, x: Tensor) -> Tensor:
        return x

    def features(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(self.between(x))
        return x[:, self.extra_tokens.shape[1] :]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=1))


class OverlappingPatches(Plain):
    """As the Audio Spectrogram Transformer has them."""

    def stem(self) -> nn.Module:
        return nn.Conv2d(3, WIDTH, PATCH + 4, PATCH, padding=2)


class ConvolutionalStem(Plain):
    """Every pixel reaches several tokens."""

    kernel = 5

    def stem(self) -> nn.Module:
        widths, k = [3, 8, 16, WIDTH], self.kernel
        parts = [nn.Conv2d(a, b, k, 2, k // 2) for a, b in zip(widths, widths[1:], strict=False)]
        return nn.Sequential(parts[0], nn.GELU(), parts[1], nn.GELU(), parts[2])


def column_by_column() -> Tensor:
    return torch.arange(ROWS * COLS).reshape(ROWS, COLS).T.flatten()


def blocks_of_four() -> Tensor:
    """As the towers of Qwen2-VL have them, which merge four patches later."""
    return torch.arange(ROWS * COLS).reshape(ROWS // 2, 2, COLS // 2, 2).transpose(1, 2).flatten()


def build(kind: type[nn.Module], *args, **kwargs) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind(*args, **kwargs).eval()
        enliven(module)
    return module


METHODS = ["complete", "rollout", "gradcam", "grad_eclip"]


@pytest.mark.parametrize("attention", [FusedAttention, WrittenOutAttention])
@pytest.mark.parametrize("order", [column_by_column, blocks_of_four, lambda: torch.randperm(ROWS * COLS)])
def test_tokens_in_another_order_give_the_map_of_their_plain_twin(order, attention):
    plain, other = (vitrail.wrap(build(Plain, one, attention)) for one in (None, order()))
    for method in METHODS[: 4 if attention is FusedAttention else 3]:
        expected, found = (vitrail.explain(m, images(2), 2, method=method).scores for m in (plain, other))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()), msg=method)


def test_one_patch_is_read_where_it_lies_in_the_image():
    plain, other = build(Plain), build(Plain, column_by_column())
    expected, found = (vitrail.explain(vitrail.wrap(m), images(), 2, readout=(1, 4)).scores for m in (plain, other))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [OverlappingPatches, ConvolutionalStem])
@pytest.mark.parametrize("tokens", [0, 2])
def test_orders_are_found_behind_stems_whose_patches_overlap(kind, tokens):
    plain, other = build(kind, tokens=tokens), build(kind, column_by_column(), tokens=tokens)
    for module in (plain, other):
        assert layout_of(vitrail.wrap(module), images()).prefix == tokens
    expected, found = (vitrail.explain(m, images(2), 2).scores for m in (plain, other))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


class PooledStem(ConvolutionalStem):
    """No convolution has the grid of the patches, and one beside the stem has another that fits their number."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.beside = nn.Conv2d(3, 1, (8, 9), (8, 9))

    def stem(self) -> nn.Module:
        first, second = (nn.Conv2d(a, b, 5, 2, 2) for a, b in ((3, 8), (8, WIDTH)))
        return nn.Sequential(first, nn.GELU(), second, nn.AvgPool2d(3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.beside(x)
        return super().forward(x)


def test_a_grid_that_was_guessed_from_a_convolution_gives_way_to_the_one_that_the_pixels_show():
    layout = layout_of(vitrail.wrap(build(PooledStem)), images())
    assert (layout.rows, layout.cols, layout.prefix) == (ROWS, COLS, 0)


def test_an_order_that_overlapping_patches_hide_is_found_by_following_the_tokens_or_refused():
    plain, module = build(ConvolutionalStem), build(ConvolutionalStem, blocks_of_four())
    expected, found = (vitrail.explain(m, images(2), 2).scores for m in (plain, module))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(LayoutError, match=r"24 tokens.*taken for 4×6 patches.*both grid=\(rows, columns\) and prefix="):
        vitrail.explain(module, images(), method="gmar_l1")
    # Whoever knows better says so; the look is then overruled.
    assert vitrail.explain(vitrail.wrap(module, grid=(4, 6), prefix=0), images()).scores.shape == (1, 4, 6)


class Shuffled(Plain):
    """As ViTMAE and ViLT have it: the order of the tokens is drawn anew on every pass."""

    def tokens(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        x = super().tokens(x)
        noise = torch.rand(x.shape[1]) if noise is None else noise
        return x[:, noise.argsort()]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        x = self.tokens(x, noise)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))


def test_tokens_shuffled_on_every_pass_are_refused_and_fixing_the_draw_helps():
    module = build(Shuffled)
    with pytest.raises(UnsupportedAttentionError, match=r"does not do the same twice.*tokens differ.*forward_options="):
        vitrail.explain(module, images())
    fixed = vitrail.wrap(module, forward_options={"noise": torch.arange(ROWS * COLS)})
    torch.testing.assert_close(
        vitrail.explain(fixed, images(), 2).scores, vitrail.explain(build(Plain), images(), 2).scores
    )


class ShuffledByPosition(Shuffled):
    """The draw is seeded, and goes through the batch: every image has an order of its own."""

    def tokens(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        x = Plain.tokens(self, x)
        order = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)).argsort(dim=1)
        return x.gather(1, order[..., None].expand_as(x))


class OneAfterAnother(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(one) for one in x.split(1)])


@pytest.mark.parametrize("attention", [FusedAttention, WrittenOutAttention])
def test_an_order_of_each_images_own_is_refused_and_one_after_another_helps(attention):
    module = build(ShuffledByPosition, attention=attention)
    with pytest.raises(UnsupportedAttentionError, match=r"every image of a batch.*sends one image after the other"):
        vitrail.explain(module, images())
    found = vitrail.explain(OneAfterAnother(module), images(3), 2).scores
    torch.testing.assert_close(found, vitrail.explain(build(Plain, attention=attention), images(3), 2).scores)


class MergedHeads(WrittenOutAttention):
    """Images and heads in one dimension; as many heads as images come together below."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.out((weights @ v).unflatten(0, (batch, -1)).transpose(1, 2).reshape(batch, tokens, width))


def test_images_sent_one_after_another_are_not_taken_for_heads():
    module = build(Plain, attention=MergedHeads)
    expected = vitrail.explain(module, images(2), 2).scores
    torch.testing.assert_close(vitrail.explain(OneAfterAnother(module), images(2), 2).scores, expected)


class WindowsAsHeads(MergedHeads):
    """As ViTDet has it: windows are joined with the heads."""

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(len(x), 2, ROWS // 2, 2, COLS // 2, WIDTH).transpose(2, 3).reshape(4 * len(x), -1, WIDTH)
        found = super().forward(windows).reshape(len(x), 2, 2, ROWS // 2, COLS // 2, WIDTH)
        return found.transpose(2, 3).reshape(x.shape)


def test_windows_joined_with_the_heads_are_no_heads():
    with pytest.raises(UnsupportedAttentionError, match="heads of attention 0 of 2 see different parts of the image"):
        vitrail.explain(build(Plain, attention=WindowsAsHeads), images(), method="gmar_l1")
    module = build(Plain, attention=MergedHeads)
    module.blocks[1].attention = build(Plain, attention=WindowsAsHeads).blocks[1].attention
    with pytest.raises(UnsupportedAttentionError, match="attention 1 of 2.*attention within windows"):
        vitrail.explain(module, images(), method="gmar_l1")


class ChanceAtTheHead(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(len(x), CLASSES)


def test_logits_drawn_anew_are_refused():
    with pytest.raises(UnsupportedAttentionError, match="given the same image again, its logits differ"):
        vitrail.explain(build(ChanceAtTheHead), images())


class FramesInChannels(Plain):
    """As VideoMAE embeds a video: two frames of three channels, each a set of tokens of its own."""

    def tokens(self, x: Tensor) -> Tensor:
        return torch.cat([super(FramesInChannels, self).tokens(frame) for frame in x.split(3, dim=1)], dim=1)


class SummaryOfTheImage(Plain):
    """The token in front of the patches is their mean: a prefix that carries the image."""

    def tokens(self, x: Tensor) -> Tensor:
        x = super().tokens(x)
        return torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)


@pytest.mark.parametrize("attention", [FusedAttention, WrittenOutAttention])
def test_a_prefix_never_carries_the_image(attention):
    with pytest.raises(LayoutError, match="48 tokens.*48 carry the image, but they lie over 24 .*places.*video"):
        vitrail.explain(build(FramesInChannels, attention=attention), torch.randn(1, 6, ROWS * PATCH, COLS * PATCH))
    module = build(SummaryOfTheImage, attention=attention)
    with pytest.raises(LayoutError, match="25 tokens of a 32×48 image.*carry the image"):
        vitrail.explain(module, images(), method="gmar_l1")
    # Where tokens are followed, the relevance of the mean is every patch's in equal parts.
    found, patches = (
        vitrail.explain(vitrail.wrap(module, **given), images(), 2, compete=False, gradient="full").scores
        for given in ({}, {"grid": (ROWS, COLS), "prefix": 1})
    )
    of_the_mean = found - patches
    torch.testing.assert_close(of_the_mean, of_the_mean.mean().expand_as(of_the_mean), rtol=1e-3, atol=1e-7)
    assert abs(float(of_the_mean.mean())) > 1e-6


class NeighboursMixed(Plain):
    """A depthwise convolution in front of every block, as position encoding (CPVT) or in the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def between(self, x: Tensor) -> Tensor:
        return x + self.local(x.transpose(1, 2).unflatten(2, (ROWS, COLS))).flatten(2).transpose(1, 2)


class Pyramid(NeighboursMixed, ConvolutionalStem):
    """Convolutions in three sizes, then blocks with more of them, as in FastViT and LowFormer."""

    kernel = 3


def test_mixing_of_neighbours_is_noted_and_a_pyramid_refused():
    assert vitrail.explain(build(Plain), images()).metadata["image_notes"] == [[]]
    (notes,) = vitrail.explain(build(NeighboursMixed), images()).metadata["image_notes"]
    assert any("mixes neighbouring tokens between its attentions" in note and "%" in note for note in notes)
    module = build(Pyramid)
    with pytest.raises(UnsupportedAttentionError, match=r"\d+% of the gradient at a token.*convolutions in 3 sizes"):
        vitrail.explain(module, images(), method="gmar_l1")
    # The remedy that it names.
    with pytest.raises(UnsupportedAttentionError, match=r'layer="local", the last layer that gives a grid \(4×6\)'):
        vitrail.explain(module, images(), method="gmar_l1")
    (notes,) = vitrail.explain(module, images()).metadata["image_notes"]
    assert any("mix neighbouring tokens" in note for note in notes)
    assert vitrail.explain(module, images(), method="gradcam", layer="local").scores.shape == (1, ROWS, COLS)


@pytest.mark.parametrize("scale", [1e-2, 1e-6])
def test_mixing_is_noticed_however_small_a_layer_scale_begins(scale: float):
    for kind in (NeighboursMixed, Pyramid):
        module = build(kind)
        with torch.no_grad():
            for part in module.local.parameters():
                part.mul_(scale)
        if kind is Pyramid:
            with pytest.raises(UnsupportedAttentionError, match="at a token comes from other tokens.*in 3 sizes"):
                vitrail.explain(module, images(), method="gmar_l1")
        else:
            (notes,) = vitrail.explain(module, images()).metadata["image_notes"]
            assert any("mixes neighbouring tokens" in note for note in notes)


class ChannelAttention(nn.Module):
    """XCA: as many channels in a head as there are tokens, so that the sizes do not betray it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = 1
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).transpose(1, 2).unflatten(1, (3, self.heads, -1)).unbind(1)
        weights = (nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).transpose(-2, -1)).softmax(
            -1
        )
        return self.out((weights @ v).flatten(1, 2).transpose(1, 2))


class Alternating(Plain):
    """Attention among tokens, then among channels, as DaViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1] = Block(WIDTH, ChannelAttention(WIDTH, 1))


def test_attention_among_as_many_channels_as_tokens_moves_nothing():
    assert ROWS * COLS == WIDTH
    with pytest.raises(LayoutError, match="24 tokens.*do not lie where they should"):
        vitrail.explain(build(Plain, attention=ChannelAttention), images())
    with pytest.raises(UnsupportedAttentionError, match="attention among channels"):
        vitrail.explain(build(Alternating), images(), method="gmar_l1")
    (notes,) = vitrail.explain(build(Alternating), images()).metadata["image_notes"]
    assert any("among channels moves nothing" in note for note in notes)


class OwnDiagonalMasked(WrittenOutAttention):
    """As vit-pytorch's `vit_for_small_dataset`: no token attends to itself."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        mask = torch.eye(tokens, dtype=torch.bool)
        weights = scores.masked_fill(mask, -torch.finfo(scores.dtype).max).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("given", [{}, {"grid": (ROWS, COLS)}, {"grid": (ROWS, COLS), "prefix": None}])
def test_attention_that_masks_its_own_diagonal(tokens, given):
    if "prefix" in given:
        given = {**given, "prefix": tokens}
    module = build(Plain, attention=OwnDiagonalMasked, tokens=tokens).double()
    found = vitrail.explain(vitrail.wrap(module, **given), images().double(), 2, gradient="full").scores[0]
    assert layout_of(vitrail.wrap(module, **given), images().double()).prefix == tokens
    # The product written out.
    captured = reference.capture(module, images())
    attention, gradients = captured.maps, captured.gradients(captured.logits[0, 2])
    row = torch.zeros(ROWS * COLS + tokens, dtype=torch.float64)
    row[tokens:] = 1 / (ROWS * COLS)
    product = torch.eye(len(row), dtype=torch.float64)
    for a, g in zip(attention, gradients, strict=True):
        product = (torch.eye(len(row), dtype=torch.float64) + (a * g)[0].mean(0)) @ product
    expected = (row @ (product - torch.eye(len(row), dtype=torch.float64)))[tokens:].reshape(ROWS, COLS)
    torch.testing.assert_close(found, expected)


class Dense(Plain):
    """Logits for every cell, and for every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).transpose(1, 2).unflatten(2, (ROWS, COLS))


def test_one_cell_of_a_dense_head_is_read_where_it_is():
    module = build(Dense)
    cell = vitrail.wrap(module, logits_from=lambda out: out[:, :, 1, 4])
    assert layout_of(cell, images()).reads == "1 of the 24 patches"
    expected = vitrail.explain(
        vitrail.wrap(module, logits_from=lambda out: out[:, :, 1, 4], readout=(1, 4)), images(), 2
    )
    torch.testing.assert_close(vitrail.explain(cell, images(), 2).scores, expected.scores)
    between = vitrail.wrap(
        module, logits_from=lambda out: nn.functional.interpolate(out, scale_factor=2, mode="bilinear")[:, :, 3, 8]
    )
    layout = layout_of(between, images())
    weights = layout.as_grid(layout.readout)
    wanted = torch.zeros(ROWS, COLS)
    wanted[1:3, 3:5] = torch.tensor([[0.75 * 0.25, 0.75 * 0.75], [0.25 * 0.25, 0.25 * 0.75]])
    torch.testing.assert_close(weights.float(), wanted, atol=0.05, rtol=0)


class Packed(Plain):
    """As Pixtral: the images of a batch in one sequence, apart by a mask only."""

    def features(self, x: Tensor) -> Tensor:
        count, tokens = len(x), ROWS * COLS
        x = self.tokens(x).flatten(0, 1)[None]
        image = torch.arange(count).repeat_interleave(tokens)
        for block in self.blocks:
            block.attention.mask = image[:, None] == image  # pyright: ignore
            x = block(x)
        return x[0].unflatten(0, (count, tokens))


class MaskedAttention(FusedAttention):
    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.out(x.transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize("method", ["complete", "rollout", "gae", "grad_eclip", "tattr"])
def test_images_packed_in_one_sequence_are_explained_one_by_one(method):
    packed, plain = build(Packed, attention=MaskedAttention), build(Plain)
    expected, found = (vitrail.explain(m, images(3), 2, method=method).scores for m in (plain, packed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


class FiveDimensions(Plain):
    """Attention within windows in five dimensions, written out, as torchvision's MaxViT has it."""

    def features(self, x: Tensor) -> Tensor:
        x = self.tokens(x).unflatten(1, (4, 6))[:, None]
        return x[:, 0].flatten(1, 2) + ((x @ x.transpose(-2, -1)).softmax(dim=-1) @ x)[:, 0].flatten(1, 2)


class FactorisedAttention(Plain):
    def features(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        return x + x @ (x.softmax(dim=1).transpose(1, 2) @ x)


class LinearAttention(Plain):
    def features(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        return x + x.relu() @ (x.relu().transpose(1, 2) @ x)


class SqueezeExcite(Plain):
    """A convolutional network's gate, which its library calls attention."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.attn = self.gate = type("SEModule", (nn.Linear,), {})(WIDTH, WIDTH)

    def features(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        return x * self.gate(x.mean(dim=1, keepdim=True)).sigmoid()


class FewerQueries(Plain):
    """As Perceiver's latents read an image."""

    def features(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        return x[:, :4] + nn.functional.scaled_dot_product_attention(x[:, None, :4], x[:, None], x[:, None])[:, 0]


class ClassAttention(Plain):
    """The class token joins after the blocks, as in CaiT."""

    def __init__(self) -> None:
        super().__init__(tokens=0)
        self.class_token, self.pool = (
            nn.Parameter(torch.zeros(1, 1, WIDTH)),
            nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        token = self.class_token.expand(len(x), -1, -1)
        x = torch.cat([token, x], dim=1)
        return self.head((token + self.pool(token, x, x, need_weights=False)[0])[:, 0])


class PoolsPatches(Plain):
    """The head pools the patches by attention, and leaves the registers out."""

    def __init__(self) -> None:
        super().__init__(tokens=2)
        self.query, self.pool = (
            nn.Parameter(torch.zeros(1, 1, WIDTH)),
            nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(self.pool(self.query.expand(len(x), -1, -1), x, x, need_weights=False)[0][:, 0])


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        (FiveDimensions, UnsupportedAttentionError, "a softmax over .*5 dimensions: attention within windows"),
        (FactorisedAttention, NoAttentionError, r"softmax over dimension 1 of \(1, 24, 24\):.*factorised"),
        (LinearAttention, NoAttentionError, "products of activations without a softmax: linear attention"),
        (SqueezeExcite, NoAttentionError, "it has no attention: it looks like a convolutional network"),
        (FewerQueries, UnsupportedAttentionError, "already the first attention reads the tokens by fewer queries"),
        (ClassAttention, UnsupportedAttentionError, r"1 token\(s\) join after the blocks.*class attention"),
        (PoolsPatches, UnsupportedAttentionError, "attention pooling leaves out 2 of the blocks' tokens"),
    ],
)  # fmt: skip
def test_the_true_reason_and_a_remedy_that_works(kind, error, reason):
    module = build(kind)
    with pytest.raises(error, match=reason + r'.*method="gradcam" with layer='):
        vitrail.explain(module, images(), method="gmar_l1")
    found = vitrail.explain(module, images(2), 2, method="gradcam", layer="embed")
    assert found.scores.shape == (2, ROWS, COLS)
    with pytest.raises(OptionError, match=r"layer='head' gives a tensor of shape \(1, 7\)"):
        vitrail.explain(module, images(), method="gradcam", layer="head")


def test_gradcam_of_a_convolutional_network_equals_its_formula():
    module = build(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)))  # fmt: skip
    found = vitrail.explain(module, images(2), 3, method="gradcam", layer="3")
    features = module[:4](images(2)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(module[4:](features)[:, 3].sum(), features)
    torch.testing.assert_close(found.scores, (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).detach())


class PooledByAQuery(Plain):
    """A learned query reads the tokens and is added to what it has read (NaViT, V-JEPA 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pool = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        query = self.query.repeat(len(x), 1, 1)
        return self.head((query + self.pool(query, x, x, need_weights=False)[0])[:, 0])


class AddsTheParameter(PooledByAQuery):
    """The same sum, the parameter as it is: broadcast over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        read = self.pool(self.query.expand(len(x), -1, -1), x, x, need_weights=False)[0]
        return self.head((self.query + read)[:, 0])


@pytest.mark.parametrize("kind", [PooledByAQuery, AddsTheParameter])
def test_a_pooled_query_with_its_residual_gives_one_image_what_it_gives_two(kind):
    model = vitrail.wrap(build(kind))
    both = vitrail.explain(model, images(2), 2, method="tattr").scores
    for number in range(2):
        alone = vitrail.explain(model, images(2)[number : number + 1], 2, method="tattr").scores[0]
        torch.testing.assert_close(alone, both[number], rtol=1e-4, atol=1e-6 * float(both.abs().max()))


class RMSNorm(nn.Module):
    """As the Llama classes write it, and four more ways."""

    def __init__(self, width: int, way: str) -> None:
        super().__init__()
        self.weight, self.way = nn.Parameter(torch.ones(width)), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "fused":
            return nn.functional.rms_norm(x, x.shape[-1:], self.weight, 1e-6)
        square = x**2 if self.way == "operator" else x.square() if self.way == "square" else x.pow(2)
        mean = square.mean(dim=-1, keepdim=True) + 1e-6
        if self.way == "divided":
            return self.weight * (x / torch.sqrt(mean))
        return self.weight * (x * (torch.pow(mean, -0.5) if self.way == "power" else torch.rsqrt(mean)))


@pytest.mark.parametrize("method", ["tattr", "lrp", "attn_lrp"])
def test_a_norm_written_out_has_the_rule_of_the_norm(method):
    maps = {}
    for way in ("fused", "pow", "operator", "square", "divided", "power"):
        module = build(Plain)
        with torch.no_grad():
            for block in module.blocks:
                block.norm1, block.norm2 = RMSNorm(WIDTH, way), RMSNorm(WIDTH, way)  # pyright: ignore
        options = {"rules": "tattr"} if method == "lrp" else {}
        maps[way] = vitrail.explain(module, images(2), 2, method=method, **options).scores
        scale = float(maps["fused"].abs().max())
        torch.testing.assert_close(maps[way], maps["fused"], rtol=1e-3, atol=1e-4 * scale, msg=f"{method} {way}")


def test_a_map_that_is_clamped_away_says_so():
    module = build(Plain)
    for block in module.blocks:
        block.attention.heads = 1  # pyright: ignore
    # With one head Grad-CAM of the attention has one sign, that of the head's mean gradient.
    signed = {t: vitrail.explain(module, images(), t, method="attn_gradcam", relu=False).scores for t in range(CLASSES)}
    against = [target for target, scores in signed.items() if float(scores.max()) <= 0]
    assert 0 < len(against) < CLASSES
    with pytest.raises(NoSignalError, match="drops all that argues against the class.*relu=False keeps the signs"):
        vitrail.explain(module, images(), against[0], method="attn_gradcam")


class Deep(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(WIDTH, FusedAttention(WIDTH, 2)) for _ in range(8))


def test_relevance_that_blows_up_is_not_shown_without_a_word():
    model = vitrail.wrap(build(Deep))
    ex = vitrail.explain(model, images(), 2, method="lrp")
    assert float(ex.scores.abs().max()) > 1e3 * float(ex.logits.abs().max())
    assert any("do not conserve relevance" in note for note in ex.metadata["image_notes"][0])
    assert vitrail.explain(model, images(), 2, method="lrp", rules="tattr").metadata["image_notes"] == [[]]


def test_a_whole_clip_is_told_that_texts_are_embedded_first():
    from transformers import CLIPConfig, CLIPModel

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(vision_config={**size, "image_size": 32, "patch_size": 8}, text_config={**size, **tokens})
    clip = CLIPModel(config).eval()

    class WithTexts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = clip

        def forward(self, x: Tensor) -> Tensor:
            return self.clip(pixel_values=x, input_ids=torch.tensor([[3, 4, 2], [5, 6, 2]])).logits_per_image

    with pytest.raises(ModelError, match=r"takes texts as well as images.*vitrail\.load\(…, texts="):
        vitrail.explain(clip, torch.randn(1, 3, 32, 32))
    with pytest.raises(
        UnsupportedAttentionError, match=r"a text tower runs next to the image's. Embed the texts.*texts="
    ):
        vitrail.explain(WithTexts(), torch.randn(1, 3, 32, 32))
