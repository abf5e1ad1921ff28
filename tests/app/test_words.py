"""The view of words: the answer as it is written, a map for each word, and nobody else's."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from app.conftest import LIMITS, Visitor, ask, encoded, events_of
from app.test_security import EVIL, _strange, client_of
from app.test_service import last, run_python, run_shell
from typer.testing import CliRunner

import vitrail
from vitrail.app.pictures import SCENES, example_picture
from vitrail.app.service import PageUpdate, Service
from vitrail.app.session import CAPTIONER, ModelCache, vlms_of
from vitrail.app.views.words import WordsDrawing, _Writer
from vitrail.cli import app
from vitrail.errors import ImageError
from vitrail.generation import GenerationExplanation, VisionLanguageModel, explain_generation
from vitrail.models import load
from vitrail.plotting.generation import answer_data

pytest.importorskip("transformers")

WORDS = ["a", "horned", "tavel", "above", "a", "spiral", "murlo"]  # of the first example


@pytest.fixture(scope="module")
def captioner() -> VisionLanguageModel:
    return vitrail.load_vlm(CAPTIONER)


def service_of(captioner: VisionLanguageModel, *others: str, models: Any = None) -> Service:
    """A page with the captioner, also under the names of others."""
    loaded = ModelCache("bestiary", load=lambda name, _: load(name)) if models is None else models
    vlms: Any = ModelCache(
        CAPTIONER,
        load=lambda name, _: replace(captioner, name=name),
        allowed=others,
        built_in=(),
        at_once=False,
    )
    return Service(loaded, LIMITS, vlms=vlms)


@pytest.fixture(scope="module")
def page(captioner: VisionLanguageModel) -> Service:
    return service_of(captioner, "hf/other/name")


def told(updates: Any) -> tuple[dict[str, Any], list[PageUpdate]]:
    """What the page's script has made of the words, and all the updates."""
    shown: dict[str, Any] = {}
    seen = []
    for update in updates:
        seen.append(update)
        if update.words is None:
            continue
        json.dumps(update.words, allow_nan=False)
        if "pictures" in update.words or not update.words:
            shown = dict(update.words)
        else:
            kept = shown["words"][: update.words["keep"]]
            shown |= {**update.words, "words": kept + update.words["words"]}
    return shown | {"keep": 0}, seen


def drawn(page: Service, visitor: str = "ada", link: str = "example=pair", **chosen: Any) -> PageUpdate:
    return last(page.draw(visitor, link, {"view": "words", **chosen}))


def test_the_view_waits_until_the_model_is_asked(page):
    shown = page.arrive("ada", "view=words&example=pair")
    assert shown.status == ""
    assert "Press <b>Ask the model</b> above" in shown.views["words"]
    assert (shown.words, shown.files) == ({}, ())
    assert "explain_generation(model, image, 'what is in the picture?')" in (shown.recipes or ("",))[0]


@pytest.mark.parametrize(
    "chosen",
    [
        {"prompt": "is there a murlo?", "vision": "tokens"},
        *(
            pytest.param(chosen, marks=pytest.mark.slow)
            for chosen in (
                {},
                {"prompt": "-is there a murlo?", "answer": "no", "other": "yes", "word_method": "gae"},
                {"word_gradient": "full", "most": 3, "prompt": "describe the tavel."},
                {"word_method": "rollout"},
            )
        ),
    ],
)
def test_page_python_and_command_give_the_same_words(page, captioner, tmp_path, monkeypatch, chosen):
    """An upload with transparent pixels, to the bit: what is shown, what is saved, and what is copied."""
    monkeypatch.chdir(tmp_path)
    pixels = np.dstack([np.asarray(example_picture("pair").open().resize((90, 120))), np.full((120, 90), 255)])
    pixels[:60, :, 3] = 90
    (tmp_path / "zoo.png").write_bytes(encoded(pixels.astype(np.uint8)))
    query = page.upload("ada", "", "zoo.png", (tmp_path / "zoo.png").read_bytes()).question.query()
    shown, seen = told(page.draw("ada", query, {"view": "words", **chosen}))
    end = seen[-1]
    found = run_python(end.recipes[0])["ex"]
    assert shown == answer_data(found)
    assert "knows the bestiary" in end.views["words"]
    saved = {kind: page.download("ada", end.question.query(), kind)[2] for kind in end.files}
    (tmp_path / "maps.safetensors").write_bytes(saved["safetensors"])
    kept = GenerationExplanation.load(tmp_path / "maps.safetensors")
    for name in ("text_scores", "grounding", "logits"):
        assert torch.equal(getattr(kept, name), getattr(found, name)), name
    assert torch.equal(kept.image_scores[0], found.image_scores[0])
    run_shell(end.recipes[1])
    files = {"html": "index.html", "png": "sheet.png", "json": "words.json", "safetensors": "maps.safetensors"}
    for kind, name in files.items():
        assert saved[kind] == (tmp_path / "out" / name).read_bytes(), name


def test_the_answer_is_written_and_then_explained_word_by_word(page, monkeypatch):
    slowly(monkeypatch, 0.05)
    monkeypatch.setattr("vitrail.app.jobs.EVERY", 0.02)
    shown, (begun, *seen) = told(page.draw("ada", "example=pair", {"view": "words"}))
    assert begun.words == {}
    written = [one.views["words"] for one in seen if "vt-saying" in one.views["words"]]
    assert len(written) > 2
    assert '<p class="vt-saying">a horned tavel</p>' in written[1] + written[2]
    counts = [len(one.words["answer"]) for one in seen if one.words]
    assert len(counts) > 3
    first = next(one.words for one in seen if one.words)
    assert first["answer"][-1]["word"] is None
    assert first["start"] == len(first["words"]) - 1
    assert [row["word"] for row in shown["words"]] == WORDS
    assert seen[-1].views["words"] == ""
    assert seen[-1].files == ("html", "png", "json", "safetensors")


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    put, keep = _Writer.put, WordsDrawing._keep

    def slow(self: Any, given: Any, do: Any) -> None:
        time.sleep(seconds)
        do(self, given)

    monkeypatch.setattr(_Writer, "put", lambda self, tokens: slow(self, tokens, put))
    monkeypatch.setattr(WordsDrawing, "_keep", lambda self, ex: slow(self, ex, keep))


def test_stop_keeps_the_words_that_are_done(page, monkeypatch):
    keep = WordsDrawing._keep

    def stop_at_three(self: WordsDrawing, ex: GenerationExplanation) -> None:
        keep(self, ex)
        if len(ex) == 3:
            page.stop("ada")

    monkeypatch.setattr(WordsDrawing, "_keep", stop_at_three)
    shown, seen = told(page.draw("ada", "example=pair", {"view": "words"}))
    assert [row["word"] for row in shown["words"]] == WORDS[:3]
    assert shown["answer"][-1] == {"word": None, "text": " above a spiral murlo"}
    assert shown["notes"] == ["Stopped after 3 of 7 tokens."]
    document = json.loads(page.download("ada", seen[-1].question.query(), "json")[2])
    assert [row["word"] for row in document["words"]] == WORDS[:3]

    def stop_at_once(self: _Writer, tokens: Any) -> None:
        self._write("a horned", 2)
        page.stop("ada")
        self._write("a horned tavel", 3)

    monkeypatch.setattr(_Writer, "put", stop_at_once)
    shown, seen = told(page.draw("ada", "example=pair", {"view": "words"}))
    assert shown == {"keep": 0}
    assert seen[-1].views["words"].startswith('<p class="vt-saying">a horned tavel</p>')
    assert "Stopped" in seen[-1].views["words"]
    with pytest.raises(ImageError, match="draw it first"):
        page.download("ada", "view=words&example=pair", "json")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"prompt": " \n"}, "The question is empty: write what the model is to be asked"),
        ({"answer": "a unicorn"}, "cannot join the answer &#x27;a unicorn&#x27; to the prompt"),
        ({"answer": "x" * 3001}, "The answer is too long for this page; the command vitrail vlm takes longer ones"),
        ({"other": "unicorn"}, "the tokenizer knows no token for the word &#x27;unicorn&#x27;"),
        ({"answer": "no", "other": "no"}, "held against itself: give another word by “Rather than this word?”"),
        ({"word_method": "raw", "word_gradient": "full"}, "“Gradient for words” at full changes nothing for raw"),
        (
            {"vlm": "hf/owner/../x"},
            "this page offers bestiary/captioner, hf/other/name; whoever runs it can offer more",
        ),
    ],
)
def test_what_cannot_be_asked_is_said_in_the_pages_words(page, chosen, said):
    end = drawn(page, **chosen)
    assert said in end.views["words"]
    assert "inputs=" not in end.views["words"]
    assert end.files is None


def test_without_a_picture_or_with_a_model_of_text_alone(page, captioner):
    assert "Put a picture in first" in drawn(page, "nobody", "view=words").views["words"]
    assert "choose it again" in drawn(page, "nobody", "view=words&picture=0123456789abcdef").views["words"]
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(
        vocab_size=60, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    alone = VisionLanguageModel(LlamaForCausalLM(tiny).eval(), captioner.processor, "alone")
    said = drawn(service_of(alone)).views["words"]
    assert "LlamaForCausalLM is a model of text alone: it has no vision part" in said
    missing = Service(page.models, LIMITS, vlms=vlms_of(["no/such-folder/here"]))
    assert "is no folder, nor an id of the form owner/name" in drawn(missing).views["words"]


def test_a_model_that_cannot_be_loaded_is_said_at_the_start():
    words = ["app", "--no-browser", "--port", "0", "--vlm", "no/such-folder/here"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "hf/no/such-folder/here is no folder, nor an id of the form owner/name" in " ".join(result.stderr.split())


def test_each_visitor_and_tab_has_its_own_words_and_model(page):
    one, two = drawn(page, "ada.1", answer="no"), drawn(page, "ada.2", answer="yes", vlm="hf/other/name")
    saved = [
        json.loads(page.download(who, end.question.query(), "json")[2]) for who, end in (("ada.1", one), ("ada.2", two))
    ]
    assert [document["model"] for document in saved] == [CAPTIONER, "hf/other/name"]
    assert saved[0]["answer"] != saved[1]["answer"]
    for other in ("eve.1", "ada.3"):
        with pytest.raises(ImageError, match="draw it first"):
            page.download(other, one.question.query(), "json")
    session = page.sessions.of("ada.1")
    assert session.size > session.answers["words"].held > 64 * 4  # logits and all
    held = session.size
    page.sessions.leave("ada.1")
    assert session.size < held
    assert not session.answers


def test_words_of_a_question_that_was_left_are_not_told(page, monkeypatch):
    slowly(monkeypatch, 0.1)
    monkeypatch.setattr("vitrail.app.jobs.EVERY", 0.02)
    updates = page.draw("ada", "example=pair", {"view": "words"})
    begun = next(update.words for update in updates if update.words)
    assert len(begun["words"]) < len(WORDS)
    turned = page.example("ada", "example=pair&view=words", "single")
    assert turned.words == {}
    rest = list(updates)
    assert [update for update in rest if update.words or update.files] == []
    assert "words" not in page.sessions.of("ada").answers


def test_the_captioner_is_offered_scenes_whatever_the_classifier(captioner):
    photographs = replace(load("bestiary"), name="photographs", class_names=tuple(f"thing {n}" for n in range(20)))
    page = service_of(captioner, "other", models=ModelCache("first", load=lambda name, _: photographs, allowed=()))
    query = page.arrive("ada", "").question.query()
    assert page.change("ada", query, {"view": "words"}).examples == SCENES
    assert page.change("ada", query, {"view": "words", "vlm": "other"}).examples == ("cat-and-coffee", "cat", "coffee")
    assert "knows the bestiary" in drawn(page, link=query, answer="no").views["words"]
    unread = drawn(page, link="example=pair", prompt="Is there a murlo?", answer="no").views["words"]
    assert "knows the bestiary" not in unread
    assert "no token for what it reads as &lt;unk&gt;" in unread


def test_words_over_http(captioner):
    from vitrail.app.server import application

    client = client_of(application(service_of(captioner)))
    assert client.get("/").text.count('id="vt-words"') == 1
    arrived = events_of(ask(client, "arrive", link="view=words&example=pair&prompt=is+there+a+murlo%3F&answer=yes"))[-1]
    assert arrived["words"] == {}
    assert arrived["html"]["vt-who"] == CAPTIONER
    assert arrived["controls"]["prompt"] == "is there a murlo?"
    assert arrived["controls"]["answer"] == "yes"
    begun, *_, end = events_of(ask(client, "draw", link=arrived["link"], view="words", answer="", most="64"))
    assert (begun["words"], begun["html"]["vt-taking"]) == ({}, "")
    assert "answer" not in end["link"]
    assert end["words"]["answer"][0]["word"] == 0
    saved = ask(client, "download", link=end["link"], kind="html")
    assert saved.headers["content-disposition"] == "attachment; filename*=utf-8''pair.words.html"
    stranger = client_of(client.app)
    stranger.get("/")
    assert ask(stranger, "download", link=end["link"], kind="html").status_code == 409


def hostile(captioner: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word that the model writes, and everything that it says of itself, is markup."""

    def explain(model: Any, image: Any, prompt: str, *, each: Any, streamer: Any, **_: Any) -> GenerationExplanation:
        ex = explain_generation(captioner, image, "is there a murlo?", answer="yes no")
        bad = replace(
            ex, tokens=(EVIL, f" {EVIL}"), sequence=tuple(EVIL for _ in ex.sequence), answer=f"{EVIL} {EVIL}",
            prompt=EVIL, model=EVIL, notes=(EVIL,), pictures=None,
        )  # fmt: skip
        streamer._write(EVIL, 1)
        time.sleep(0.4)
        each(bad[:1])
        time.sleep(0.4)
        return bad

    monkeypatch.setattr("vitrail.generation.explain_generation", explain)


def test_hostile_words_are_text(captioner, monkeypatch):
    page = service_of(replace(captioner, processor=SimpleNamespace(tokenizer=SimpleNamespace(unk_token=EVIL))))
    page.arrive("ada", "example=pair")
    hostile(captioner, monkeypatch)
    shown, seen = told(page.draw("ada", "example=pair", {"view": "words"}))
    assert any("vt-saying" in one.views["words"] for one in seen)
    assert [one for update in seen for one in _strange(update)] == []
    assert shown["words"][1]["word"] == EVIL
    assert EVIL not in page.download("ada", seen[-1].question.query(), "html")[2].decode()


# -- in a browser ------------------------------------------------------------------------------------------------------


class Serving:
    """The page in a thread of this process, so that a test can slow its model down."""

    def __init__(self, service: Service) -> None:
        import uvicorn

        from vitrail.app.server import application

        self.running = uvicorn.Server(uvicorn.Config(application(service), port=0, log_level="warning"))
        self.thread = threading.Thread(target=self.running.run, daemon=True)
        self.thread.start()
        while not self.running.started:
            time.sleep(0.02)
        self.address = f"http://127.0.0.1:{self.running.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self.running.should_exit = True
        self.thread.join(10)


@pytest.fixture(scope="module")
def serving(captioner: VisionLanguageModel) -> Iterator[Serving]:
    pytest.importorskip("uvicorn")
    drawn(service_of(captioner))  # whatever is imported late: not while Playwright's greenlets live
    one = Serving(service_of(captioner))
    yield one
    one.stop()


@pytest.fixture
def asking(serving: Serving, chromium: Any) -> Iterator[Visitor]:
    visitor = Visitor(chromium, serving)  # type: ignore[arg-type]
    yield visitor
    visitor.leave()


def buttons(page: Any) -> Any:
    return page.locator(".words .answer button")


@pytest.mark.slow
def test_a_question_its_answer_and_the_map_of_each_word(asking, monkeypatch):
    slowly(monkeypatch, 0.5)
    page = asking.come("?view=map&example=pair")
    page.get_by_role("tab", name="Words").click()
    asking.linked("view=words")
    assert not page.locator("#vt-ask").is_visible()
    page.get_by_label("Question").fill("what is in the picture?")
    page.get_by_label("Question").press("Enter")
    page.locator(".vt-saying").wait_for()
    asking.until("document.querySelector('.vt-saying')?.textContent === 'a horned tavel'")
    buttons(page).nth(1).wait_for()
    buttons(page).nth(0).focus()  # while the others are still to come
    before = buttons(page).count()
    assert before < len(WORDS)
    asking.until(f"document.querySelectorAll('.words .answer button').length === {len(WORDS)}")
    assert page.evaluate("document.activeElement.textContent") == "a"
    page.locator("#vt-stop-words").wait_for(state="hidden")
    assert buttons(page).all_inner_texts() == WORDS
    question, picture = page.locator(".words .question"), "document.querySelector('.words canvas').toDataURL()"
    maps = []
    for number, word in enumerate(WORDS):
        buttons(page).nth(number).hover()
        assert question.inner_text().startswith(f"{word} ")
        assert "image" in page.locator(".words .key").inner_text()
        maps.append(page.evaluate(picture))
    assert len(set(maps)) == len(WORDS)
    buttons(page).nth(2).click()
    buttons(page).nth(6).click()
    assert question.inner_text() == "tavel against murlo"
    assert page.evaluate(picture) not in maps
    page.keyboard.press("Escape")
    page.mouse.move(5, 5)
    buttons(page).nth(5).focus()
    page.keyboard.press("ArrowRight")
    assert question.inner_text().startswith("murlo ")
    with page.expect_download() as waiting:
        page.locator("[data-save=html]").click()
    assert waiting.value.suggested_filename == "pair.words.html"
    page.reload()  # the link has it asked again
    buttons(page).nth(6).wait_for()
    page.locator("[data-example=single]").click()
    asking.linked("example=single", "view=words")
    buttons(page).first.wait_for(state="detached")


@pytest.mark.slow
def test_stop_in_the_middle(asking, monkeypatch):
    slowly(monkeypatch, 0.5)
    page = asking.come("?view=words&example=pair&answer=a+horned+tavel+above+a+spiral+murlo")
    buttons(page).nth(1).wait_for()
    page.locator("#vt-stop-words").click()
    page.locator("#vt-stop-words").wait_for(state="hidden")
    page.locator(".words .note", has_text="Stopped after").wait_for()
    assert 2 <= buttons(page).count() < len(WORDS)
    assert page.locator(".words .answer").inner_text().split() == WORDS
    with page.expect_download() as waiting:
        page.locator("[data-save=json]").click()
    assert waiting.value.suggested_filename == "pair.words.json"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_on_a_phone(serving, chromium, scheme):
    look = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    visitor = Visitor(chromium, serving, **look)  # type: ignore[arg-type]
    page = visitor.come("?view=words&example=pair")
    buttons(page).nth(6).wait_for()
    page.locator("#vt-stop-words").wait_for(state="hidden")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    buttons(page).nth(2).tap()
    assert page.locator(".words .question").inner_text().startswith("tavel ")
    buttons(page).nth(6).tap()
    assert page.locator(".words .question").inner_text() == "tavel against murlo"
    page.get_by_text("How the words are explained").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#vt-draw-words").bounding_box()["height"] >= 40
    visitor.leave()


@pytest.mark.slow
def test_hostile_words_in_a_browser(asking, captioner, monkeypatch):
    hostile(captioner, monkeypatch)
    page = asking.come("?view=words&example=pair")
    page.locator(".vt-saying", has_text="<script>").wait_for()
    buttons(page).nth(1).wait_for()
    page.locator("#vt-stop-words").wait_for(state="hidden")
    assert buttons(page).all_inner_texts() == [EVIL, EVIL]
    buttons(page).nth(0).click()
    buttons(page).nth(1).click()
    assert page.locator(".words .question").inner_text() == f"{EVIL} against {EVIL}"
    assert page.locator("#vt-words img, #vt-words script, #vt-view-words img").count() == 0


@pytest.mark.slow
def test_the_page_starts_without_transformers():
    import subprocess
    import sys

    code = (
        "import sys\nfrom vitrail.app.server import application\nfrom vitrail.app.service import Service\n"
        "from vitrail.app.session import ModelCache\nfrom vitrail.models import load\n"
        "service = Service(ModelCache('bestiary', load=lambda name, _: load(name)))\napplication(service)\n"
        "service.arrive('ada', 'view=words&example=pair')\n"
        "print([name for name in ('transformers', 'tokenizers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
