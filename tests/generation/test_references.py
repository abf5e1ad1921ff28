"""Every class of vision-language models against literal products of dense matrices in float64."""

import pytest
import torch
from dense_generation import dense_explanation, dense_maps, dense_seq2seq, libra
from torch import Tensor
from vlm_families import ANSWER, IMAGE, VLMS

from vitrail.generation import explain_generation

TILES = {"idefics3": (2, 3), "smolvlm": (2, 3), "internvl": (1, 2)}
QUICK = {"llava", "qwen2_5_vl"}
OTHER = 5  # the word of contrastive questions


def cases() -> list:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in VLMS]


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    assert found.shape == wanted.shape
    error = float((found.double() - wanted).abs().max() / wanted.abs().max())
    assert error < 2e-5, f"{what} is {error:.1e} off"


@pytest.mark.parametrize("contrast", [False, True], ids=["plain", "contrast"])
@pytest.mark.parametrize("name", cases())
def test_every_class_is_the_product_of_its_dense_matrices(name: str, contrast: bool) -> None:
    model, inputs = VLMS[name].build()
    against = OTHER if contrast else None
    asked = {"inputs": inputs, "answer": ANSWER, "against": against, "tiles": TILES.get(name), "gradient": "full"}
    by_token, by_patch = (explain_generation(model, **asked, vision=vision) for vision in ("tokens", "patches"))
    ids, length = inputs.get("decoder_input_ids", inputs["input_ids"])[0], len(by_token.sequence)
    image = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    if name in ("llava_next", "llava_onevision"):
        width = 8 if name == "llava_next" else 4
        image = image[[at for at in range(len(image)) if at < 16 or (at - 16) % (width + 1) != width]]  # no new lines
    wide, given = VLMS[name].build(torch.float64)
    encoder = length - len(ids)
    for number, position in enumerate(by_token.positions):
        at = position - encoder

        def scalar(logits: Tensor, at: int = at) -> Tensor:
            return logits[at - 1, ids[at]] - (logits[at - 1, OTHER] if contrast else 0)

        maps = dense_maps(wide, given, scalar)
        found = (
            dense_seq2seq(name, maps, encoder, length, position, image)
            if encoder
            else dense_explanation(name, maps, length, position, image)
        )
        words, grid, patches = found
        close(by_patch.image_scores[0][number], patches, "the map by patches")
        close(by_token.image_scores[0][number], grid, "the map by image tokens")
        close(by_token.text_scores[number], words, "the words")
        close(by_patch.text_scores[number], words, "the words")
    assert tuple(by_token.image_scores[0].shape[1:]) == VLMS[name].tokens
    assert tuple(by_patch.image_scores[0].shape[1:]) == VLMS[name].patches


@pytest.mark.parametrize("mode", ["leaf", "libra"])
@pytest.mark.parametrize("name", ["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def test_the_gradient_modes_hold_constant_what_they_say(name: str, mode: str) -> None:
    model, inputs = VLMS[name].build()
    found = explain_generation(model, inputs=inputs, answer=ANSWER, positions=-1, gradient=mode)
    wide, given = VLMS[name].build(torch.float64)
    if mode == "libra":
        libra(wide)
    ids = inputs["input_ids"][0]
    image = (ids == IMAGE).nonzero()[:, 0]
    maps = dense_maps(wide, given, lambda logits: logits[-2, ids[-1]], constant=True)
    words, _, patches = dense_explanation(name, maps, len(ids), len(ids) - 1, image)
    close(found.image_scores[0][0], patches, "the map by patches")
    close(found.text_scores[0], words, "the words")


@pytest.mark.parametrize("method", ["gae", "absolute"])
def test_other_rules_are_their_products(method: str) -> None:
    model, inputs = VLMS["llava"].build()
    found = explain_generation(model, inputs=inputs, answer=ANSWER, positions=-1, method=method)
    wide, given = VLMS["llava"].build(torch.float64)
    ids = inputs["input_ids"][0]
    image = (ids == IMAGE).nonzero()[:, 0]
    maps = dense_maps(wide, given, lambda logits: logits[-2, ids[-1]], rule=method)
    words, _, patches = dense_explanation("llava", maps, len(ids), len(ids) - 1, image)
    close(found.image_scores[0][0], patches, "the map by patches")
    close(found.text_scores[0], words, "the words")
