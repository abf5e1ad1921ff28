"""Drawing layers anew leaves the user's model alone and goes from the head down; and how alike two maps are."""

import copy
import math

import numpy as np
import pytest
import torch
from families import FAMILIES, Family
from metrics.asking import ask, case, summary
from skimage.metrics import structural_similarity as skimage_ssim
from torch import nn

import vitrail
from vitrail.errors import ModelError, NoSignalError, OptionError
from vitrail.metrics import find_protocol
from vitrail.metrics.randomisation.cascading import layers_of, likeness, randomised, structural_similarity

SOME = ["timm_vit", "timm_deit_distilled", "timm_siglip", "hf_vit", "torchvision_vit"]


def _changed(model, other) -> set[str]:
    """The names of the parameters that differ."""
    before, after = (dict(one.module.named_parameters()) for one in (model, other))
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("name", SOME)
def test_layers_are_the_stem_each_block_and_the_head(name):
    family: Family = FAMILIES[name]
    model = family.model()
    layers = layers_of(model, family.images(1))
    assert list(layers)[0] == "stem"
    assert list(layers)[-1] == "head"
    assert len(layers) == family.depth + 2
    named = [parameter for names in layers.values() for parameter in names]
    assert sorted(named) == sorted(key for key, _ in model.module.named_parameters(remove_duplicate=False))
    for block, names in list(layers.items())[1:-1]:
        assert all(parameter.startswith(block + ".") for parameter in names)
        assert any(parameter.endswith("bias") for parameter in names)


def test_what_runs_before_and_after_the_blocks():
    layers = layers_of(FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(1))
    assert layers["head"] == ("norm.weight", "norm.bias", "head.weight", "head.bias")
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} == set(layers["stem"]) - {"patch_embed.proj.bias"}
    layers = layers_of(FAMILIES["timm_siglip"].model(), FAMILIES["timm_siglip"].images(1))
    assert "attn_pool.latent" in layers["head"]
    layers = layers_of(FAMILIES["torchvision_vit"].model(), FAMILIES["torchvision_vit"].images(1))
    # The out-projection of nn.MultiheadAttention is read by its function, and never called.
    assert any("out_proj" in name for name in layers["encoder.layers.encoder_layer_0"])


@pytest.mark.parametrize("name", SOME)
def test_a_model_forgets_from_the_head_down_and_the_user_s_stays(name):
    family: Family = FAMILIES[name]
    model = vitrail.wrap(family.build())
    images = family.images(1)
    before = copy.deepcopy(model.module.state_dict())
    names = list(reversed([set(found) for found in layers_of(model, images).values()]))
    last = None
    for count in range(family.depth + 3):
        other = randomised(model, count, seed=1, image=images)
        single = {key for key, one in model.module.named_parameters() if one.numel() == 1}
        expected = set().union(*names[:count]) - single
        # A parameter that is the same number everywhere has no deviation to be drawn with.
        constant = {key for key, one in model.module.named_parameters() if one.numel() > 1 and one.std() == 0}
        assert expected - constant <= _changed(model, other) <= expected
        if last is not None:  # what was drawn for fewer layers stays for more
            assert _changed(last, other) <= names[count - 1] if count <= len(names) else not _changed(last, other)
        last = other
    assert all(torch.equal(value, model.module.state_dict()[key]) for key, value in before.items())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.module.modules())


def test_draws_depend_on_the_seed_alone_and_keep_mean_and_deviation():
    model = vitrail.load("bestiary")
    one, same, other = (randomised(model, 3, seed) for seed in (4, 4, 5))
    assert _changed(one, same) == set()
    assert _changed(one, other) == _changed(model, one)
    before, after = (part.module.blocks[5].mlp.fc1.weight.detach() for part in (model, one))
    assert float(after.mean()) == pytest.approx(
        float(before.mean()), abs=3 * float(before.std()) / before.numel() ** 0.5
    )
    assert float(after.std()) == pytest.approx(float(before.std()), rel=0.02)
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1].abs() < 0.03
    module = randomised(model.module, 1, image=torch.zeros(1, 3, 96, 96))
    assert type(module) is type(model.module)
    assert not torch.equal(module.head.weight, model.module.head.weight)


class Tied(nn.Module):
    """Attention written into one function, so that no module is a block, and a weight that two modules share."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 12)
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.out = nn.Linear(12, 12)
        self.out.weight = self.head.weight
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        tokens = self.embed(images).flatten(2).mT
        seen = nn.functional.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])[:, 0]
        return self.scale * self.head(self.out(tokens + seen).mean(1))


def test_without_blocks_each_module_is_a_layer_and_shared_weights_are_drawn_once():
    torch.manual_seed(0)
    model = vitrail.wrap(Tied().eval())
    image = torch.randn(1, 3, 16, 16)
    layers = layers_of(model, image)
    assert [(name, set(found)) for name, found in layers.items()] == [
        ("stem", {"scale"}),
        ("embed", {"embed.weight", "embed.bias"}),
        ("out", {"out.weight", "out.bias"}),
        ("head", {"head.weight", "head.bias"}),
    ]
    first, second, whole = (randomised(model, count) for count in (1, 2, 99))
    assert torch.equal(first.module.head.weight, second.module.head.weight)
    assert first.module.head.weight is first.module.out.weight
    assert whole.module.scale.item() == 2.0


def test_the_model_must_say_what_it_takes():
    with pytest.raises(
        ModelError, match=r"Tied does not say what size of image it takes; give randomised\(…, image=…\)"
    ):
        randomised(vitrail.wrap(Tied().eval()), 1)
    with pytest.raises(OptionError, match="layers=-1 cannot be drawn anew"):
        randomised(vitrail.load("bestiary"), -1)


# -- likeness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(14, 14), (7, 9), (20, 8)])
def test_structure_is_scikit_image_s(shape):
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, *shape))
    expected = skimage_ssim(one, other, win_size=7, data_range=2.0)
    assert structural_similarity(torch.from_numpy(one), torch.from_numpy(other), span=2) == pytest.approx(expected)
    assert structural_similarity(torch.from_numpy(one[:3]), torch.from_numpy(one[:3]), span=2) == pytest.approx(1)


def test_ranks_are_scipy_s():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(1)
    one, other = generator.integers(-4, 5, size=(2, 12, 12)).astype(float)
    found = likeness(torch.from_numpy(one), torch.from_numpy(other))
    assert found.rank == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
    assert found.absolute_rank == pytest.approx(spearmanr(abs(one).ravel(), abs(other).ravel()).statistic)
    assert found.structure == pytest.approx(likeness(torch.from_numpy(3 * one), torch.from_numpy(other)).structure)
    assert math.isnan(likeness(torch.ones(4, 4), torch.rand(4, 4)).rank)


def test_the_protocol_asks_stage_by_stage_and_a_stage_without_signal_is_unlike():
    scores = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    asked = []

    def explain(question):
        asked.append((question.randomised, list(question.targets)))
        return NoSignalError("nothing") if question.randomised == 3 else question.randomised * scores[None]

    found = ask("randomisation", case(torch.zeros(3, 16, 16)), scores, explain, stages=[1, 2, 3])
    assert asked == [(1, [1]), (2, [1]), (3, [1])]
    assert [row.value for row in found if row.measure == "rank"] == [1.0, 1.0, 0.0]
    assert [row.step for row in found if row.measure == "structure"] == [1.0, 2.0, 3.0]
    table = summary("randomisation", [found], stages=[1, 2, 3])
    assert table["rank correlation after randomisation"].value() == pytest.approx(2 / 3)
    assert table["SSIM at the last stage"].value() == 0.0
    for stages in ([], [0], [2, 1], [1, 1]):
        with pytest.raises(OptionError, match="must be numbers of layers from 1 on, ascending"):
            ask("randomisation", case(), scores, explain, stages=stages)


def test_a_trained_model_s_map_is_lost_with_its_weights():
    model = vitrail.load("bestiary")
    image = FAMILIES["timm_vit"].images(1)[:, :, :48, :48].repeat(1, 1, 2, 2)
    whole = vitrail.explain(model, image, 3).scores[0]

    def explain(question):
        other = randomised(model, question.randomised)
        return vitrail.explain(other, question.images, list(question.targets)).scores

    stages = find_protocol("randomisation").options["stages"]
    found = ask("randomisation", case(image[0], target=3, grid=(12, 12)), whole, explain)
    ranks = [row.value for row in found if row.measure == "rank"]
    assert len(ranks) == len(stages)
    assert max(map(abs, ranks)) < 0.9
    assert abs(ranks[-1]) < 0.4
