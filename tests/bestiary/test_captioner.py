"""The captioner: a plain LLaVA from its folder, the bestiary's ViT in it, right answers, and their causal truth."""

import sys

import pytest
import torch

from vitrail.bestiary import BestiaryError, captioner, render, sample_scene
from vitrail.bestiary.dialogues import caption, held_out
from vitrail.bestiary.model import load_weights, normalised
from vitrail.errors import CheckpointError, ModelError

transformers = pytest.importorskip("transformers")
TIMM = captioner.FOLDER.parent / "bestiary.safetensors"


@pytest.fixture(scope="module")
def loaded():
    return captioner.load()


@pytest.fixture(scope="module")
def pair():
    return sample_scene("pair", seed=3, species=("tavel", "murlo"))


def test_the_tower_is_the_bestiarys_vit(loaded):
    vit, _ = load_weights(TIMM)
    for name, tensor in captioner.tower_weights(vit).items():
        assert torch.equal(loaded[0].model.vision_tower.state_dict()[name], tensor), name
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tower = transformers.ViTModel(loaded[0].config.vision_config).eval().to(dtype)
        tower.load_state_dict(captioner.tower_weights(vit))
        found = tower(pixels.to(dtype), output_hidden_states=True)
        vit.to(dtype)
        with torch.no_grad():
            blocks = vit.blocks(vit._pos_embed(vit.patch_embed(pixels.to(dtype))))
        torch.testing.assert_close(found.hidden_states[-1], blocks, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.last_hidden_state, vit.norm(blocks), rtol=tolerance, atol=tolerance)


def test_the_folder_is_small_and_loads_by_the_plain_classes(loaded):
    assert sum(path.stat().st_size for path in captioner.FOLDER.iterdir()) <= 4e6
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(captioner.FOLDER)
    assert type(plain) is type(loaded[0]) is transformers.LlavaForConditionalGeneration
    assert plain.dtype == torch.float32
    assert type(transformers.AutoProcessor.from_pretrained(captioner.FOLDER)) is transformers.LlavaProcessor
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, loaded[0].state_dict()[name]), name


def test_a_picture_goes_in_as_the_bestiarys_models_take_it(loaded, pair):
    (truth,) = captioner.caption_truth(*loaded, [pair.without(1)])
    ids = truth.inputs["input_ids"][0]
    assert int((ids == loaded[0].config.image_token_id).sum()) == 144
    torch.testing.assert_close(truth.inputs["pixel_values"][0], normalised(captioner_pixels(truth.drawn)))
    assert [loaded[1].decode([ids[place]]) for place in truth.positions] == ["horned", "tavel"]


def captioner_pixels(drawn):
    return torch.from_numpy(drawn.image).permute(2, 0, 1).float() / 255


@torch.no_grad()
def test_held_out_scenes_are_described_rightly(loaded):
    model, processor = loaded
    scenes = held_out("pair", 4) + held_out("single", 2)
    for scene in scenes:
        said = caption(scene)
        inputs = captioner.prepare(processor, render(scene), said, answered=False)
        found = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(found, skip_special_tokens=True) == said.answer


@torch.no_grad()
def test_effects_are_changes_of_the_words_logit(loaded, pair):
    model, processor = loaded
    (truth,) = captioner.caption_truth(model, processor, [pair], batch=7)
    texts = [truth.dialogue.words[word].text for word in truth.content]
    assert texts == ["spiral", "murlo", "left", "horned", "tavel"]
    assert truth.without_part.shape == (len(truth.parts), 5, len(captioner.VOCABULARY))
    assert truth.masks.shape == (len(truth.parts), 96, 96)
    whole = model(**truth.inputs).logits[0]
    without = captioner.prepare(processor, render(pair.without(0, "crown")), truth.dialogue)
    crown, place, token = truth.parts.index((0, "crown")), truth.positions[3], captioner.VOCABULARY.index("horned")
    change = whole[place - 1] - model(**without).logits[0, place - 1]
    torch.testing.assert_close(truth.part_effects(3)[crown], change[token], atol=1e-4, rtol=0)
    curly = captioner.VOCABULARY.index("curly")
    torch.testing.assert_close(truth.part_effects(3, "curly")[crown], change[token] - change[curly], atol=1e-4, rtol=0)
    # A trait is due to its own creature, and to the part that it names.
    for word in (0, 3):
        own = truth.dialogue.words[truth.content[word]].creatures[0]
        assert truth.creature_effects(word)[own] > 5 > truth.creature_effects(word)[1 - own]
    assert truth.parts[int(truth.part_effects(0).argmax())] == (1, "shell")
    assert truth.parts[int(truth.part_effects(3).argmax())] == (0, "crown")
    with pytest.raises(BestiaryError, match="'zebra' is not among the"):
        truth.part_effects(0, "zebra")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no model.safetensors; train it by `python -m training"):
        captioner.load(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="transformers is not installed; install it with"):
        captioner.load()
