"""The result of `explain_text`: texts as people read them, files, and pictures."""

from pathlib import Path

import numpy as np
import pytest
import texts
import torch
from PIL import Image
from rich.console import Console

import vitrail
from vitrail.errors import ExplanationFileError, OptionError
from vitrail.explanation import Explanation
from vitrail.plotting.text import draw_text, hex_colour, text_lines
from vitrail.provenance import from_metadata
from vitrail.text import Piece, TextExplanation


def made(
    text: str,
    tokens: list[tuple[str, float, tuple[int, int, int] | None]],
    special: tuple[int, ...] = (),
) -> TextExplanation:
    """An explanation of one text with these tokens, scores and places."""
    names, scores, spans = zip(*tokens, strict=True)
    return TextExplanation(
        texts=(text,),
        tokens=(names,),
        special=(tuple(number in special for number in range(len(names))),),
        spans=(spans,),
        answer=Explanation(
            scores=torch.tensor(scores)[None, None],
            logits=torch.tensor([[0.0, 1.5]]),
            target=torch.tensor([1]),
            method="complete",
            objective="logit",
            class_names=("negative", "positive"),
            provenance=from_metadata({"model": "tiny", "image_notes": [["A note."]], "sources": [None]}),
        ),
    )


@pytest.fixture(scope="module")
def explained() -> TextExplanation:
    known = texts.FAMILIES["bert"]
    return vitrail.explain_text(
        known.build(), known.tokenizer(), texts.TEXTS[:2], "positive", against="negative", objective="difference"
    )


def test_pieces_are_the_text_again(explained: TextExplanation):
    pieces = explained.pieces(special=False)
    assert "".join(piece.text for piece in pieces) == texts.TEXTS[0]
    words = [piece.text for piece in pieces if piece.score is not None]
    assert words == ["The", "film", "was", "not", "bad", "ly", "made", "."]
    scores = [piece.score for piece in pieces if piece.score is not None]
    assert scores == explained.of()[1:-1].tolist()
    with_special = explained.pieces()
    assert (with_special[0].text, with_special[0].special) == ("[CLS]", True)
    assert with_special[-1].text == "[SEP]"


def test_tokens_of_the_same_letter_are_one_piece():
    ex = made("é ok", [("Ã", 0.25, (0, 0, 1)), ("©", 0.5, (0, 0, 1)), ("Ġok", -1.0, (0, 2, 4))])
    assert ex.pieces() == [Piece("é", 0.75), Piece(" ", None), Piece("ok", -1.0)]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["[CLS]", "bad", "##ly", "made"], "[CLS] badly made"),
        (["[CLS]", "▁bad", "ly", "▁made"], "[CLS] badly made"),
        (["[CLS]", "bad", "ly", "Ġmade"], "[CLS]badly made"),
    ],
)
def test_without_places_the_tokens_marks_tell(tokens: list[str], expected: str):
    ex = made("", [(token, 0.5, None) for token in tokens], special=(0,))
    assert "".join(piece.text for piece in ex.pieces()) == expected


def test_one_text_of_several(explained: TextExplanation):
    second = explained[1]
    assert (len(second), second.texts) == (1, (texts.TEXTS[1],))
    assert second.scores.shape == (1, len(explained.tokens[1]))
    assert torch.equal(second.of(), explained.of(1))
    assert [part.texts[0] for part in explained] == texts.TEXTS[:2]
    with pytest.raises(IndexError, match="text 2 of an explanation of 2"):
        explained[2]


def test_saved_and_loaded_it_is_the_same(explained: TextExplanation, tmp_path: Path):
    back = TextExplanation.load(explained.save(tmp_path / "a.safetensors"))
    assert torch.equal(back.scores, explained.scores)
    assert back.pieces(1) == explained.pieces(1)
    assert (back.texts, back.special, back.question()) == (explained.texts, explained.special, explained.question())
    assert back.answer.metadata == explained.answer.metadata
    explained.answer.save(tmp_path / "b.safetensors")
    with pytest.raises(ExplanationFileError, match=r"b\.safetensors is an explanation, but none of text"):
        TextExplanation.load(tmp_path / "b.safetensors")
    with pytest.raises(OptionError, match=r"name it \.html, \.png"):
        explained.save(tmp_path / "a.txt")


def test_a_page_colours_every_token_and_escapes_the_text(tmp_path: Path):
    ex = made("<b> & not", [("<b>", 0.5, (0, 0, 3)), ("&", 0.0, (0, 4, 5)), ("not", -1.0, (0, 6, 9))])
    page = ex.save(tmp_path / "a.html").read_text()
    assert "<b>" not in page
    for text, score in (("&lt;b&gt;", 0.5), ("&amp;", 0.0), ("not", -1.0)):
        start = page.index(f">{text}</span>")
        assert f"background: {hex_colour(score)}" in page[page.rindex("<span", 0, start) : start]
    assert "positive 81.8 %" in page
    assert "−1  against" in page
    assert "A note." in page
    assert "http" not in page


def test_hidden_tokens_that_outweigh_the_words_are_told():
    ex = made("bad", [("[CLS]", 0.1, None), ("bad", 0.5, (0, 0, 3)), ("[SEP]", -2.0, None)], special=(0, 2))
    told = "Not shown: [SEP] has −2, more than any word."
    assert told in ex.to_html()
    assert told not in ex.to_html(special=True)
    assert told in text_lines(ex).plain
    quiet = made("bad", [("[CLS]", 0.1, None), ("bad", 0.5, (0, 0, 3))], special=(0,))
    assert "Not shown" not in quiet.to_html()


def test_the_picture_shows_both_signs_on_their_words():
    ex = made("good bad", [("good", 1.0, (0, 0, 4)), ("bad", -1.0, (0, 5, 8))])
    figure = ex.plot()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)  # type: ignore[attr-defined]
    row = pixels[:, : pixels.shape[1] // 3]
    red, blue = (
        (np.abs(row - [int(hex_colour(s)[i : i + 2], 16) for i in (1, 3, 5)]).max(axis=2) <= 1) for s in (1.0, -1.0)
    )
    text = slice(int(0.5 * 200), int(0.95 * 200))  # the line of words, in pixels from the top
    left, right = np.nonzero(red[text])[1], np.nonzero(blue[text])[1]
    assert len(left) > 1000
    assert len(right) > 1000
    assert left.max() < right.min()


def test_long_texts_are_set_in_lines_within_the_picture(explained: TextExplanation, tmp_path: Path):
    words = ["film" if number % 7 else "extraordinarily" for number in range(60)]
    long = " ".join(words)
    starts = [sum(len(word) + 1 for word in words[:number]) for number in range(60)]
    ex = made(
        long, [(w, 0.01 * n - 0.3, (0, s, s + len(w))) for n, (w, s) in enumerate(zip(words, starts, strict=True))]
    )
    figure = draw_text(ex)
    assert figure.get_size_inches()[1] > draw_text(explained[1]).get_size_inches()[1] + 0.5
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [label.get_window_extent(renderer) for label in figure.texts]
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    drawn = [label.get_text() for label in figure.texts if label.get_text() in words]
    assert drawn == words
    with Image.open(explained.save(tmp_path / "a.png")) as picture:
        assert picture.size[0] == 1480


def test_a_terminal_gets_the_text_in_colour(explained: TextExplanation):
    console = Console(force_terminal=True, color_system="truecolor", width=200)
    with console.capture() as capture:
        console.print(text_lines(explained))
    assert "\x1b[48;2" in capture.get().replace("38;2;34;34;34;", "").replace("38;2;255;255;255;", "")
    assert texts.TEXTS[0] in text_lines(explained).plain


def test_nothing_is_stretched_where_there_is_no_signal():
    ex = made("bad film", [("bad", 0.0, (0, 0, 3)), ("film", 0.0, (0, 4, 8))])
    assert "no signal: all scores are zero" in ex.to_html()
    assert any("no signal" in label.get_text() for label in ex.plot().texts)
