"""The captioner: a plain LLaVA, the bestiary's ViT in it, right answers, and their causal truth."""

import hashlib
import shutil
import sys
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file

from vitrail.bestiary import BestiaryError, captioner, render, sample_scene
from vitrail.bestiary.dialogues import caption, held_out
from vitrail.bestiary.model import load_weights, normalised
from vitrail.errors import CheckpointError, ModelError

transformers = pytest.importorskip("transformers")
TRAINED = "865f3b4264b9e60efcf10d3c72392f924f8bfa1a49918d91fe294997986eb62a"  # SHA-256 of all names and weights


@pytest.fixture(scope="module")
def loaded():
    return captioner.load()


@pytest.fixture(scope="module")
def pair():
    return sample_scene("pair", seed=3, species=("tavel", "murlo"))


def test_the_tower_is_the_bestiarys_vit(loaded):
    vit, _ = load_weights(captioner.TOWER)
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tower = deepcopy(loaded[0].model.vision_tower).to(dtype)
        found = tower(pixels.to(dtype), output_hidden_states=True)
        vit.to(dtype)
        with torch.no_grad():
            blocks = vit.blocks(vit._pos_embed(vit.patch_embed(pixels.to(dtype))))
        torch.testing.assert_close(found.hidden_states[-1], blocks, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.last_hidden_state, vit.norm(blocks), rtol=tolerance, atol=tolerance)


def test_a_captioner_whole_in_one_folder_answers_bit_for_bit_the_same(loaded, pair, tmp_path):
    """The weights are those that were trained as one file, and Hugging Face's own classes read them as such."""
    model, processor = loaded
    deepcopy(model).half().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    digest = hashlib.sha256(b"".join(name.encode() + weights[name].numpy().tobytes() for name in sorted(weights)))
    assert digest.hexdigest() == TRAINED
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(plain) is type(model)
    inputs = captioner.prepare(processor, render(pair), caption(pair))
    assert torch.equal(plain(**inputs).logits, model(**inputs).logits)
    assert plain.generation_config.to_dict() == model.generation_config.to_dict()


def test_the_folder_holds_what_the_bestiary_has_not(loaded):
    assert sum(path.stat().st_size for path in captioner.FOLDER.iterdir()) <= 1.5e6
    assert not [name for name in load_file(captioner.FOLDER / captioner.WEIGHTS) if "vision" in name]
    assert type(transformers.AutoProcessor.from_pretrained(captioner.FOLDER)) is transformers.LlavaProcessor
    with pytest.raises(OSError, match="model.safetensors"):  # rather than a tower of random weights
        transformers.LlavaForConditionalGeneration.from_pretrained(captioner.FOLDER, local_files_only=True)


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
    with pytest.raises(CheckpointError, match=r"no projector-and-decoder.safetensors; train it by `python -m training"):
        captioner.load(tmp_path)
    shutil.copytree(captioner.FOLDER, tmp_path / "other")
    weights = load_file(tmp_path / "other" / captioner.WEIGHTS)
    name = "multi_modal_projector.linear_2.bias"
    without = {other: weights[other] for other in weights if other != name}
    for odd in (without, weights | {"more": torch.zeros(1)}):
        save_file(odd, tmp_path / "other" / captioner.WEIGHTS)
        with pytest.raises(CheckpointError, match=r"(linear_2.bias|more) is missing or unknown"):
            captioner.load(tmp_path / "other")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="transformers is not installed; install it with"):
        captioner.load()
