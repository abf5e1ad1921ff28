"""Grid, prefix and readout are worked out for every family, may be overridden, and are refused when they do not fit."""

import pytest
import reference
import torch
from families import FAMILIES, enliven
from linear_patches import LinearPatches
from torch import nn

import vitrail
from vitrail.errors import LayoutError, NoAttentionError, UnsupportedAttentionError
from vitrail.models.layout import layout_of, readout_weights

IN_WORDS = {
    "class": "class token",
    "mean": "mean of the patches",
    "class+mean": "class token and mean of the patches",
    "distilled": "mean of 2 tokens beside the patches",
    "pool": "attention pooling",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_layout_is_worked_out(name):
    family = FAMILIES[name]
    layout = layout_of(vitrail.wrap(family.build()), family.images(2))
    assert (layout.rows, layout.cols) == family.grid
    assert layout.prefix == family.prefix
    assert layout.reads == IN_WORDS[family.readout]
    assert layout.heads == family.heads
    assert layout.classes == family.classes
    assert layout.layers == family.depth + layout.pools
    expected = reference.readout(family.readout, family.prefix, layout.patches, len(layout.readout))
    torch.testing.assert_close(layout.readout.double(), expected)


def test_a_description_says_how_the_tokens_lie():
    family = FAMILIES["timm_dinov2_registers"]
    model = vitrail.wrap(family.build(), preprocess=vitrail.Preprocess(size=family.image_size, resize=None))
    assert (
        "5 token(s) before 4 x 3 patches; 3 attention layers of 3 heads; the head reads: class token"
        in model.describe()
    )
    toy = vitrail.wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), preprocess=vitrail.Preprocess(size=(2, 2)))
    assert "not to be explained: Sequential ran, but no attention" in toy.describe()


def test_another_resolution_than_the_trained_one_has_its_own_layout():
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=5, dynamic_img_size=True
    ).eval()
    model = vitrail.wrap(module)
    for size, grid in (((64, 64), (4, 4)), ((48, 96), (3, 6)), ((160, 32), (10, 2))):
        assert vitrail.explain(model, torch.randn(1, 3, *size)).scores.shape[1:] == grid


def test_mean_over_all_tokens_is_told_from_class_token_and_mean():
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=5, global_pool="avg", fc_norm=False,
        pool_include_prefix=True,
    ).eval()  # fmt: skip
    enliven(module)
    layout = layout_of(vitrail.wrap(module), torch.randn(1, 3, 64, 64))
    assert layout.reads == "mean of all tokens"
    torch.testing.assert_close(layout.readout, torch.full_like(layout.readout, 1 / 17))


def test_a_maximum_over_patches_reads_all_of_them():
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=5, global_pool="max", fc_norm=False
    ).eval()
    assert layout_of(vitrail.wrap(module), torch.randn(1, 3, 64, 64)).reads == "mean of the patches"


def test_grids_without_a_convolution_are_found_by_arithmetic():
    layout = layout_of(vitrail.wrap(LinearPatches(8, 1).eval()), torch.randn(1, 3, 32, 48))
    assert (layout.rows, layout.cols, layout.prefix) == (4, 6, 1)


def test_many_tokens_beside_the_patches_are_told_from_them_by_the_pixels():
    layout = layout_of(vitrail.wrap(LinearPatches(8, 12).eval()), torch.randn(1, 3, 32, 48))
    assert (layout.rows, layout.cols, layout.prefix) == (4, 6, 12)


class FrozenStem(LinearPatches):
    """No gradient leads from the tokens to the pixels."""

    def embed_patches(self, x):
        with torch.no_grad():
            return self.embed(nn.functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2))

    def forward(self, x):
        x = torch.cat([self.tokens.expand(len(x), -1, -1), self.embed_patches(x)], dim=1)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


def test_a_grid_that_cannot_be_known_is_asked_for():
    module, image = FrozenStem(8, 12).eval(), torch.randn(1, 3, 32, 48)
    with pytest.raises(
        LayoutError, match=r"36 tokens of a 32×48 image.*no gradient leads.*grid=\(rows, columns\) and prefix="
    ):
        vitrail.explain(module, image, method="gmar_l1")
    followed = vitrail.explain(module, image, 1).scores
    for given in ({"grid": (4, 6)}, {"grid": (4, 6), "prefix": 12}):
        torch.testing.assert_close(vitrail.explain(vitrail.wrap(module, **given), image, 1).scores, followed)
    with pytest.raises(LayoutError, match=r"36 tokens .* with 3 token\(s\) before the patches.*4×6 = 24"):
        vitrail.explain(vitrail.wrap(module, grid=(4, 6), prefix=3), torch.randn(1, 3, 32, 48))


@pytest.mark.parametrize(
    ("readout", "nonzero"),
    [
        ("class", [0]),
        ("mean", range(2, 8)),
        ("all", range(8)),
        (1, [1]),
        (-1, [7]),
        ((1, 2), [7]),
        ([0, 1] + [0] * 6, [1]),
    ],
)
def test_readouts_by_name(readout, nonzero):
    weights = readout_weights(readout, queries=8, prefix=2, grid=(2, 3))
    assert weights.nonzero()[:, 0].tolist() == list(nonzero)
    assert float(weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("readout", "prefix", "message"),
    [
        (9, 2, "readout=9 is no token: the last attention has 8 queries"),
        ((2, 0), 2, r"readout=\(2, 0\) is no patch of the 2×3 grid"),
        ([1.0, 2.0], 2, r"readout has \(2,\) weights, but the last attention has 8 queries"),
        ("cls", 2, "readout='cls' is none of"),
    ],
)
def test_readouts_that_do_not_exist(readout, prefix, message):
    with pytest.raises(LayoutError, match=message):
        readout_weights(readout, queries=8, prefix=prefix, grid=(2, 3))


def test_a_class_token_that_does_not_exist():
    with pytest.raises(
        LayoutError, match='readout="class", but this model has no token beside its patches: use "mean"'
    ):
        readout_weights("class", queries=6, prefix=0, grid=(2, 3))


class PatchesFirst(LinearPatches):
    """The class token and registers stand behind the patches."""

    def forward(self, x):
        x = nn.functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        x = torch.cat([self.embed(x), self.tokens.expand(len(x), -1, -1)], dim=1)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, -1])


def test_tokens_behind_the_patches():
    first, last = LinearPatches(8, 1).eval(), PatchesFirst(8, 1).eval()
    last.load_state_dict(first.state_dict())
    images = torch.randn(1, 3, 32, 48)
    layout = layout_of(vitrail.wrap(last), images)
    assert (layout.prefix, layout.rows, layout.cols, layout.reads) == (0, 4, 6, "class token")
    assert layout.readout.nonzero().tolist() == [[24]]
    torch.testing.assert_close(vitrail.explain(last, images, 1).scores, vitrail.explain(first, images, 1).scores)


def test_blocks_side_by_side_are_refused_by_what_follows_no_branches():
    from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer

    module = VisionTransformer(
        img_size=64, embed_dim=48, depth=2, num_heads=3, num_classes=5, block_fn=ParallelThingsBlock
    ).eval()
    with pytest.raises(UnsupportedAttentionError, match="attention 1 of 4 does not follow from attention 0"):
        vitrail.explain(module, torch.randn(1, 3, 64, 64), method="gmar_l1")


def test_two_passes_in_one_forward():
    class Flipped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + self.inner(x.flip(-1))

    with pytest.raises(UnsupportedAttentionError, match="attention 3 of 6 does not follow from attention 2"):
        vitrail.explain(Flipped(FAMILIES["timm_vit"].build()).eval(), FAMILIES["timm_vit"].images(1), method="gmar_l1")
    inner, images = FAMILIES["timm_vit"].build().eval(), FAMILIES["timm_vit"].images(2)
    both, there, back = (
        vitrail.explain(module, given, 3, compete=False).scores
        for module, given in ((Flipped(inner).eval(), images), (inner, images), (inner, images.flip(-1)))
    )
    torch.testing.assert_close(both, there + back.flip(-1))


def test_a_model_that_has_changed_since_it_was_wrapped():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    model = vitrail.wrap(module)
    vitrail.explain(model, images)
    module.reset_classifier(5)
    with pytest.raises(LayoutError, match="3 times for 5 logits, but 3 times for 7.*wrap it again"):
        vitrail.explain(model, images)


def test_a_token_of_a_model_that_pools_by_attention():
    with pytest.raises(LayoutError, match="pools its tokens by attention with 1 query"):
        vitrail.explain(FAMILIES["timm_siglip"].build(), FAMILIES["timm_siglip"].images(1), readout=(0, 0))


def test_the_row_of_any_patch_can_be_read():
    family = FAMILIES["timm_vit"]
    module, images = family.build(), family.images(1)
    maps = [
        vitrail.explain(module, images, 2, method="rollout", readout=(row, col)).scores[0]
        for row, col in [(0, 1), (3, 2)]
    ]
    # Half of every block's row is the token itself.
    assert maps[0].argmax() == 1
    assert maps[1].argmax() == 14


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mvitv2_tiny", "hiera_tiny_224"])
def test_window_and_pyramid_models_are_refused_by_what_follows_no_tokens(name):
    import timm

    module = timm.create_model(name, num_classes=3).eval()
    with pytest.raises(
        UnsupportedAttentionError, match=r"attention \d+.*(queries see \d+ keys|dimensions).*not supported"
    ):
        vitrail.explain(module, torch.randn(1, 3, 224, 224), method="gmar_l1")


def test_a_model_without_attention():
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(64, 3)).eval()
    with pytest.raises(NoAttentionError, match="it has no attention: it looks like a convolutional network"):
        vitrail.explain(convolutions, torch.randn(1, 3, 32, 32))


def test_logits_that_do_not_depend_on_attention():
    class Detached(LinearPatches):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(NoAttentionError, match="calls attention 1 times, but its logits do not depend"):
        vitrail.explain(Detached(8, 1).eval(), torch.randn(1, 3, 32, 48))
