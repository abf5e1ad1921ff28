"""Every class of vision-language models against literal products of dense matrices in float64."""

from collections.abc import Callable

import pytest
import torch
from dense_generation import VISION, dense_explanation, dense_maps, dense_row, dense_seq2seq, eye, libra, start, through
from torch import Tensor
from vlm_families import ANSWER, IMAGE, VLMS, pixels, words

from vitrail.generation import explain_generation

TILES = {"idefics3": (2, 3), "smolvlm": (2, 3), "internvl": (1, 2)}
QUICK = {("llava", True), ("qwen2_5_vl", False)}
DECODERS = [name for name in VLMS if name in VISION and name not in ("blip_2", "instructblip")]
OTHER = 5  # the word of contrastive questions


def cases() -> list:
    both = [(name, contrast) for name in VLMS for contrast in (False, True)]
    return [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in both]


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    assert found.shape == wanted.shape
    error = float((found.double() - wanted).abs().max() / wanted.abs().max())
    assert error < 2e-5, f"{what} is {error:.1e} off"


@pytest.mark.parametrize(("name", "contrast"), cases())
def test_every_class_is_the_product_of_its_dense_matrices(name: str, contrast: bool) -> None:
    model, inputs = VLMS[name].build()
    against = OTHER if contrast else None
    asked = {"inputs": inputs, "answer": ANSWER, "against": against, "tiles": TILES.get(name), "gradient": "full"}
    by_token, by_patch = (explain_generation(model, **asked, vision=vision) for vision in ("tokens", "patches"))
    ids, length = inputs.get("decoder_input_ids", inputs["input_ids"])[0], len(by_token.sequence)
    image = image_tokens(name, inputs["input_ids"][0])
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
    maps = dense_maps(wide, given, last(ids), constant=True)
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
    maps = dense_maps(wide, given, last(ids), rule=method)
    words, _, patches = dense_explanation("llava", maps, len(ids), len(ids) - 1, image)
    close(found.image_scores[0][0], patches, "the map by patches")
    close(found.text_scores[0], words, "the words")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "llava" else pytest.mark.slow) for name in DECODERS]
)
def test_rollout_is_the_product_of_halved_attention(name: str) -> None:
    """½(I + E_h[A]), layer by layer; raw is the last layer's E_h[A] alone."""
    model, inputs = VLMS[name].build()
    wide, given = VLMS[name].build(torch.float64)
    ids = inputs["input_ids"][0]
    image = image_tokens(name, ids)
    attention = dense_maps(wide, given, last(ids), rule="attention")
    halved = [(one - eye(one.shape[-1])) / 2 for one in attention]
    words, grid, patches = dense_explanation(name, halved, len(ids), len(ids) - 1, image)
    words += start(len(ids), len(ids) - 1)  # the row keeps the half of itself that no attention moved
    asked = {"inputs": inputs, "answer": ANSWER, "positions": -1, "tiles": TILES.get(name)}
    found = explain_generation(model, **asked, method="rollout")
    close(found.image_scores[0][0], patches, "rollout by patches")
    close(found.text_scores[0], words, "rollout of the words")
    found = explain_generation(model, **asked, method="rollout", vision="tokens")
    close(found.image_scores[0][0], grid, "rollout by image tokens")
    row = start(len(ids), len(ids) - 1) @ attention[-1][0]
    found = explain_generation(model, **asked, method="raw")
    words = row.clone()
    words[image] = 0
    close(found.text_scores[0], words, "raw attention to the words")
    if name != "qwen3_vl" and bool(row[image].any()):  # features added at several layers; a window without an image
        still = [torch.zeros_like(one) for one in attention[:-3]]
        close(found.image_scores[0][0], VISION[name](row[image], still)[1], "raw attention by patches")


def test_images_in_one_sequence_have_a_map_each() -> None:
    model, _ = VLMS["pixtral"].build()
    ids = torch.cat([words(24, before=1, after=0, answer=0), words(16)], dim=1)
    inputs = {"input_ids": ids, "pixel_values": pixels(2, 3, 32, 48), "image_sizes": torch.tensor([[32, 48], [32, 32]])}
    found = explain_generation(model, inputs=inputs, answer=ANSWER, positions=-1, gradient="full")
    maps = dense_maps(model.double(), {**inputs, "pixel_values": inputs["pixel_values"].double()}, last(ids[0]))
    image = (ids[0] == IMAGE).nonzero()[:, 0]
    row, _, vision = dense_row("pixtral", maps, len(ids[0]), len(ids[0]) - 1, image)
    first, second = through(row[image], [one[0] for one in vision]).split([24, 16])
    close(found.image_scores[0][0], first.view(4, 6), "the first map")
    close(found.image_scores[1][0], second.view(4, 4), "the second map")


def image_tokens(name: str, ids: Tensor) -> Tensor:
    """The places of the image's tokens in the sequence; the ends of lines between them are no part of it."""
    image = (ids == IMAGE).nonzero()[:, 0]
    if name not in ("llava_next", "llava_onevision"):
        return image
    width = 8 if name == "llava_next" else 4
    return image[[at for at in range(len(image)) if at < 16 or (at - 16) % (width + 1) != width]]


def last(ids: Tensor) -> Callable[[Tensor], Tensor]:
    """The logit of the last word."""
    return lambda logits: logits[-2, ids[-1]]
