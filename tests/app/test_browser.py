"""The page in a real browser, the system's Chromium, with every other machine out of reach."""

import io
import re
import time
from typing import Any

import numpy as np
import pytest
from app.conftest import Visitor, encoded, saved
from PIL import Image

from vitrail.bestiary import render, sample_scene
from vitrail.counterfactual import classify
from vitrail.models import load

slow = pytest.mark.slow


def scores(visitor: Visitor) -> str:
    return visitor.page.locator("#vt-view-map .vt-glass[data-scores]").first.get_attribute("data-scores") or ""


def test_a_picture_goes_in_and_a_map_comes_out(visitor, creature):
    """The smoke test: the example is there at once, an upload is explained, the address is a link."""
    page = visitor.come()
    visitor.linked("example=pair")
    page.locator("#vt-view-map .vt-map").first.wait_for()
    before = scores(visitor)
    visitor.upload(creature)
    page.wait_for_function("!location.search.includes('example')")
    page.locator(".vt-is-for", has_text="tavel").wait_for()
    page.locator("#vt-view-map", has_text="mine.png").wait_for()
    assert scores(visitor) != before
    bar = page.locator("#vt-view-map .vt-bar").inner_text()
    assert "against" in bar
    assert "for" in bar


def test_a_system_in_dark_mode_gets_a_dark_page_that_answers(chromium, page_server):
    visitor = Visitor(chromium, page_server, color_scheme="dark")
    page = visitor.come("?view=map&example=pair&target=0")
    page.locator("#vt-view-map .vt-map").first.wait_for()
    assert luminance(page, "body", "background-color") < 0.05
    page.locator(".vt-class", has_text="murlo").click()
    visitor.linked("against=8")
    page.locator("#vt-view-map figcaption", has_text="against murlo").wait_for()
    for word in (
        ".vt-is-for .vt-name",
        ".vt-is-against .vt-name",
        ".vt-class:not([class*=vt-is]) .vt-name",
        ".vt-below",
    ):
        ground = luminance(page, ".vt-class" if "class" in word or "is-" in word else "body", "background-color")
        assert (luminance(page, word, "color") + 0.05) / (ground + 0.05) >= 4.5, word
    page.get_by_role("button", name="Dark or light").click()
    assert luminance(page, "body", "background-color") > 0.8
    page.reload()
    page.locator("#vt-view-map .vt-map").first.wait_for()
    assert luminance(page, "body", "background-color") > 0.8
    visitor.leave()


def luminance(page, selector, property_name):
    """The relative luminance of a colour as it is computed, from 0 to 1."""
    text = page.locator(selector).first.evaluate(f"one => getComputedStyle(one)['{property_name}']")
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in re.findall(r"\d+", text)[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@slow
def test_class_against_class_by_mouse_and_by_keyboard(visitor):
    page = visitor.come("?view=map&example=pair")
    visitor.linked("example=pair")
    alone = scores(visitor)
    page.locator(".vt-class", has_text="tavel").press("Enter")  # murlo is predicted, and stays what is explained
    visitor.linked("target=8", "against=0")
    page.locator("#vt-view-map figcaption", has_text="against tavel").wait_for()
    assert scores(visitor) != alone
    assert page.locator(".vt-is-against").get_attribute("aria-pressed") == "true"
    assert page.locator("#vt-against input").input_value() == "tavel"
    assert page.evaluate("document.activeElement.dataset.class") == "0"  # the focus stays where it was
    page.get_by_role("button", name="Swap the two").click()
    visitor.linked("target=0", "against=8")
    page.locator("#vt-view-map figcaption", has_text="against murlo").wait_for()
    page.get_by_role("button", name="Only tavel").click()
    page.wait_for_function("!location.search.includes('against')")


@slow
def test_back_and_reload_keep_picture_and_view(visitor, creature):
    """One entry of the history for each question, and the visitor's own picture outlives a reload."""
    page = visitor.come()
    visitor.linked("example=pair", "against=8")
    entries = page.evaluate("history.length")
    visitor.upload(creature, "tavel.png")
    visitor.linked("picture=")
    page.get_by_role("tab", name="Heads").click()
    visitor.linked("view=heads", "picture=")
    page.locator("#vt-view-heads [data-pick='1 2']").click()
    visitor.linked("layer=1", "head=2")
    assert page.evaluate("history.length") == entries + 3
    page.go_back()
    page.go_back()
    page.locator("#vt-view-map", has_text="tavel.png").wait_for()
    assert page.get_by_role("tab", name="Map").get_attribute("aria-selected") == "true"
    page.go_back()
    page.locator("#vt-view-map", has_text="pair.png").wait_for()
    visitor.linked("example=pair", "against=8")
    page.go_forward()
    page.locator("#vt-view-map", has_text="tavel.png").wait_for()
    before = scores(visitor)
    page.evaluate("navigator.sendBeacon = where => localStorage.setItem('said', where)")
    page.reload()
    page.locator("#vt-view-map", has_text="tavel.png").wait_for()
    assert scores(visitor) == before
    assert page.evaluate("history.length") == entries + 3
    assert page.evaluate("localStorage.getItem('said')") == "ask"  # that it leaves: the server counts from there


@slow
def test_while_a_picture_is_read_the_old_map_is_grey_and_it_is_said(visitor, creature):
    page = visitor.come()
    held: list[Any] = []  # the questions to the server, until the page has been looked at
    page.route("**/ask", lambda route: held.append(route))
    visitor.upload(creature, "mine.png")
    page.locator(".vt-reading", has_text="Reading mine.png").wait_for()
    shown = page.locator("#vt-view-map .vt-panels").first
    page.wait_for_function("+getComputedStyle(document.querySelector('#vt-view-map .vt-panels')).opacity < 0.5")
    assert "grayscale" in shown.evaluate("one => getComputedStyle(one).filter")
    page.unroute("**/ask")
    for question in held:
        question.continue_()
    page.locator("#vt-view-map", has_text="mine.png").wait_for()
    page.locator(".vt-reading").wait_for(state="hidden")


@slow
def test_any_class_and_method_from_the_lists(visitor):
    page = visitor.come("?view=map&example=pair")
    visitor.linked("example=pair")
    for name, word, link in (("target", "drola", "target=19"), ("against", "konka", "against=9")):
        field = page.locator(f"#vt-{name} input")
        field.click()
        field.fill(word)
        page.locator("[role=option]", has_text=word).click()
        visitor.linked(link)
    page.locator("#vt-view-map figcaption", has_text="against konka").wait_for()
    page.get_by_text("How it is asked").click()
    page.get_by_label("Method", exact=True).select_option("attn_lrp")
    visitor.linked("method=attn_lrp")
    page.locator("#vt-view-map .vt-below", has_text="attn_lrp").wait_for()
    page.get_by_label("libra").check()
    visitor.linked("gradient=libra")
    page.get_by_label("Model", exact=True).select_option("bestiary/label-errors")
    visitor.linked("model=bestiary%2Flabel-errors", "method=attn_lrp", "example=pair")
    page.locator(".vt-who", has_text="bestiary/label-errors").wait_for()
    page.locator(".vt-reading").wait_for(state="hidden")
    assert page.locator("[role=alert]").count() == 0


@slow
def test_a_finer_map_is_chosen_where_a_method_has_one(visitor):
    page = visitor.come("?view=map&example=pair&target=8")
    visitor.linked("example=pair")
    page.get_by_text("How it is asked").click()
    field = page.get_by_label("Cells per patch")
    assert field.input_value() == "1"
    before, patches = scores(visitor), page.locator("#vt-view-map .vt-map").first.get_attribute("src")
    field.focus()
    field.select_option("pixel")
    visitor.linked("resolution=pixel")
    page.locator("#vt-view-map", has_text="pixels, 4 views").wait_for()
    assert page.locator("#vt-view-map .vt-map").first.get_attribute("src") != patches
    assert len(scores(visitor).split()) == len(before.split()) == 144
    assert page.evaluate("document.activeElement.id") == "vt-resolution"
    glass = page.locator("#vt-view-map .vt-glass[tabindex]")
    glass.press("ArrowUp")
    glass.press("Enter")
    page.locator("#vt-view-map figcaption", has_text="row 6, column 7 attends to").wait_for()
    for kind in ("png", "svg"):  # of two grids
        with page.expect_download() as waiting:
            page.locator(f"[data-save={kind}]").click()
        assert len(saved(waiting.value)) > 10_000
    page.get_by_role("tab", name="Heads").click()
    page.locator("#vt-view-heads .vt-map").first.wait_for()
    assert not field.is_visible()
    page.go_back()
    page.get_by_label("Method", exact=True).select_option("rollout")
    visitor.linked("method=rollout")
    page.locator("#vt-view-map .vt-below", has_text="rollout").first.wait_for()
    assert not field.is_visible()
    page.get_by_label("Method", exact=True).select_option("gae")
    page.locator("#vt-view-map", has_text="pixels, 4 views").wait_for()
    assert field.input_value() == "pixel"
    page.goto(f"{visitor.server.address}/?view=map&example=pair&target=8&resolution=3")
    page.locator("[role=alert]", has_text="“Cells per patch” at 3 does not cut patches of 8×8 pixels").wait_for()
    page.get_by_text("How it is asked").click()
    field.select_option("1")
    page.locator("#vt-view-map .vt-map").first.wait_for()
    field.select_option("2")
    page.locator("#vt-view-map", has_text="2 × 2 cells, 4 views").wait_for()
    assert page.locator("[role=alert]").count() == 0


@slow
def test_a_class_is_found_by_its_name_exact_ones_first(visitor):
    page = visitor.come("?view=map&example=pair")
    names = ["tiger cat", "cathedral", "Egyptian cat, fine", "polecat", "cat", "dog"]
    ranked = page.evaluate("""async names => {
        const { rank } = await import(document.querySelector("script").src);
        return rank(names, "cat").map(one => one.name);
    }""", names)  # fmt: skip
    assert ranked == ["cat", "cathedral", "tiger cat", "Egyptian cat, fine", "polecat"]
    field = page.locator("#vt-target input")
    field.click()
    field.fill("dro")
    assert page.locator("[role=option]").first.inner_text() == "drola"
    field.press("Escape")
    assert page.locator("[role=option]:visible").count() == 0
    assert field.input_value() == "murlo"
    field.press("Tab")  # the lists are passed by one key each
    assert page.evaluate("document.activeElement.id") == "vt-in-against"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.includes('How it is asked')")
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("konk")
    page.keyboard.press("Enter")
    visitor.linked("target=8" if "target" in page.url else "against=9", "against=9")


@slow
def test_wide_screens_are_filled_from_the_middle(chromium, page_server):
    visitor = Visitor(chromium, page_server, viewport={"width": 1920, "height": 1080})
    page = visitor.come("?view=map&example=pair&target=0&against=8&row=3&col=3")
    page.locator("#vt-view-map .vt-panel").nth(2).wait_for()
    box = page.locator("#vt-page").bounding_box()
    assert abs(box["x"] - (1920 - box["x"] - box["width"])) < 3
    assert box["width"] > 1400
    tops = {page.locator("#vt-view-map .vt-glass").nth(n).bounding_box()["y"] for n in range(3)}
    assert len(tops) == 1  # whatever the titles above them wrap to
    visitor.leave()


@slow
def test_pointing_at_a_patch_by_mouse_and_by_keyboard(visitor):
    page = visitor.come("?view=map&example=pair&target=8")
    glass = page.locator("#vt-view-map .vt-glass[tabindex]")
    box = glass.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.62, box["y"] + box["height"] * 0.71)
    said = page.locator("#vt-view-map .vt-tip").inner_text()
    assert page.locator("#vt-view-map .vt-invite .vt-mouse").text_content() == "Click"
    assert said.startswith("row 9, column 8: ")
    assert said.rpartition(" ")[2] == scores(visitor).split()[8 * 12 + 7]
    page.mouse.click(box["x"] + box["width"] * 0.62, box["y"] + box["height"] * 0.71)
    visitor.linked("row=8", "col=7")
    page.locator("#vt-view-map figcaption", has_text="row 9, column 8 attends to").wait_for()
    glass.focus()
    for key in ("ArrowUp", "ArrowLeft", "Enter"):
        glass.press(key)
    visitor.linked("row=7", "col=6")
    page.locator("#vt-view-map figcaption", has_text="row 8, column 7 attends to").wait_for()
    assert page.locator("#vt-view-map .vt-kept").count() == 2
    page.keyboard.press("Escape")
    page.wait_for_function("!location.search.includes('row')")
    page.locator("#vt-view-map figcaption", has_text="attends to").wait_for(state="detached")


@slow
def test_opacity_and_links_and_recipes(visitor):
    page = visitor.come("?view=map&example=pair&target=0&against=8")
    page.locator("#vt-view-map [data-opacity]").fill("0.25")
    page.wait_for_function("getComputedStyle(document.querySelector('#vt-view-map .vt-map')).opacity == 0.25")
    map_, slider = (
        page.locator(f"#vt-view-map {one}").bounding_box() for one in (".vt-glass[tabindex]", ".vt-opacity")
    )
    assert slider["y"] > map_["y"] + map_["height"]  # under its own picture
    assert abs(slider["x"] - map_["x"]) < 8
    page.get_by_role("button", name="Copy as Python").click()
    page.locator(".vt-said.vt-on", has_text="Python copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "against='murlo'" in copied
    compile(copied, "copied", "exec")
    page.get_by_text("Show the code").click()
    assert page.locator("pre[data-text=python]").inner_text().strip() == copied.strip()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280  # however long a line of it is
    page.get_by_role("button", name="Copy link").click()
    page.locator(".vt-said.vt-on", has_text="Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    before = scores(visitor)
    page.goto("about:blank")
    page.goto(link)
    page.locator("#vt-view-map figcaption", has_text="against murlo").wait_for()
    assert scores(visitor) == before


@slow
def test_downloads(visitor):
    page = visitor.come("?view=map&example=pair&target=0")
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        with page.expect_download() as waiting:
            page.locator(f"[data-save={kind}]").click()
        assert waiting.value.suggested_filename == f"pair.map.{kind}"
        assert saved(waiting.value).startswith(start)


@slow
def test_layers_and_heads(visitor):
    page = visitor.come("?view=layers&example=pair&target=0")
    slider = page.locator("#vt-view-layers .vt-player input")
    slider.wait_for()
    slider.fill("0")
    assert page.locator("#vt-view-layers .vt-player output").inner_text() == "block 6 alone"
    assert page.locator("#vt-view-layers .vt-map:not([hidden])").count() == 1
    page.get_by_role("tab", name="Heads").click()
    cell = page.locator("#vt-view-heads [data-pick='1 2']")
    cell.click()
    visitor.linked("view=heads", "layer=1", "head=2")
    page.locator("#vt-view-heads figcaption", has_text="block 2, head 3 alone").wait_for()
    page.locator("#vt-view-heads [data-pick='1 2'][aria-pressed=true]").wait_for()


@slow
def test_rewrite_and_download(visitor, creature):
    page = visitor.come()
    visitor.upload(creature, "tavel.png")
    page.locator("#vt-view-map", has_text="tavel.png").wait_for()
    page.get_by_role("tab", name="Rewrite").click()
    page.locator("#vt-draw-rewrite").click()
    button = page.get_by_role("button", name="Save the rewritten picture")
    button.wait_for(timeout=120_000)
    with page.expect_download() as waiting:
        button.click()
    data = saved(waiting.value)
    before, after = np.asarray(Image.open(io.BytesIO(creature))), np.asarray(Image.open(io.BytesIO(data)))
    assert after.shape == before.shape
    answer = classify(load("bestiary"), data).softmax(0)
    assert float(answer[1]) >= 0.9
    assert waiting.value.suggested_filename == "tavel.rewritten-borrin.png"


@slow
def test_long_work_shows_progress_and_stops(visitor):
    page = visitor.come("?view=map&example=pair")
    page.get_by_role("tab", name="Transfer").click()
    page.locator("#vt-view-transfer .vt-wait").wait_for()
    page.locator("#vt-view-transfer").wait_for()
    assert not page.locator("#vt-stop-transfer").is_visible()  # nothing runs
    page.get_by_label("Steps").fill("100")
    page.locator("#vt-draw-transfer").click()
    page.locator("#vt-view-transfer [role=progressbar]").wait_for()
    page.locator("#vt-stop-transfer").click()
    page.locator("#vt-view-transfer", has_text="Stopped").wait_for()
    page.locator("#vt-stop-transfer").wait_for(state="hidden")


@slow
@pytest.mark.parametrize("steps", [5, 1])  # 1 is less than the slider has
def test_a_link_to_a_long_view_has_it_drawn(visitor, steps):
    page = visitor.come(f"?view=transfer&example=pair&target=8&against=0&steps={steps}")
    page.locator("#vt-view-transfer .vt-panel").first.wait_for(timeout=60_000)
    assert page.locator("#vt-view-transfer figcaption").nth(1).inner_text() == "tavel"


@slow
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GIF89a", "cannot be used"),
        (b"<svg onload=alert(1)>", "no image that Pillow can read"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "cut short or damaged"),
        (b"\xff" * 2_100_000, "larger than this page takes"),
    ],
)
def test_broken_uploads_are_told_kindly(visitor, data, words):
    page = visitor.come()
    before = scores(visitor)
    visitor.upload(data)
    alert = page.locator("[role=alert]")
    alert.wait_for()
    assert words in alert.inner_text()
    assert "Traceback" not in page.content()
    assert "b'" not in alert.inner_text()
    assert "\\x" not in alert.inner_text()
    assert scores(visitor) == before
    page.locator(".vt-class").nth(1).click()
    alert.wait_for(state="detached")


@slow
def test_two_visitors_at_once_see_their_own(chromium, page_server):
    names = ("tavel", "nimbo")
    visitors = [Visitor(chromium, page_server) for _ in names]
    for visitor in visitors:
        visitor.come()
    for visitor, name in zip(visitors, names, strict=True):
        scene = sample_scene("single", seed=5, species=name)
        visitor.upload(encoded(render(scene, 180).image), f"{name}.png")
    for visitor, name in zip(visitors, names, strict=True):
        visitor.page.locator("#vt-view-map", has_text=f"{name}.png").wait_for()
        visitor.page.locator(".vt-is-for", has_text=name).wait_for()
    for visitor in reversed(visitors):
        visitor.page.locator(".vt-class").nth(1).click()
        visitor.linked("target=")
    for visitor, name in zip(visitors, names, strict=True):
        assert f"{name}.png" in visitor.page.locator("#vt-view-map").inner_text()
        visitor.leave()


@slow
def test_phone_width(chromium, page_server):
    visitor = Visitor(chromium, page_server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = visitor.page
    visitor.come("?view=map&example=pair&target=0")
    page.locator("#vt-view-map .vt-map").first.wait_for()
    words = [one.inner_text() for one in page.locator(".vt-touch:visible").all()]
    assert {"Tap", "Choose or take a photograph"} <= set(words)
    assert page.locator(".vt-mouse:visible").count() == 0
    tops = [page.locator(one).bounding_box()["y"] for one in ("#vt-offer", "#vt-view-map .vt-glass:visible", "#vt-ask")]
    assert tops == sorted(tops)  # the map right under the picker, then the classes
    assert tops[1] < 600
    for view in ("Map", "Layers", "Heads", "Detail", "Methods", "Guide", "Transfer", "Rewrite", "Words"):
        tab = page.get_by_role("tab", name=view)
        assert tab.bounding_box()["height"] >= 40
        tab.tap()
        shown = ".vt-map:not([hidden])" if view in ("Map", "Layers", "Heads", "Detail") else ".vt-wait"
        page.locator(f"#vt-view-{view.lower()} {shown}").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
        if view == "Guide":
            assert page.locator("#vt-panel-guide .vt-drop").bounding_box()["width"] > 300
    page.get_by_role("tab", name="Map").tap()
    for one in page.locator(".vt-class:visible").all():
        box = one.bounding_box()
        assert box["height"] >= 44  # large enough for a finger
    visitor.leave()


@slow
def test_tablet_width(chromium, page_server):
    """Below the width at which all views fit in one line, the map stands right under the picker there, too."""
    visitor = Visitor(chromium, page_server, viewport={"width": 768, "height": 1024})
    page = visitor.come("?view=map&example=pair&target=0&against=8")
    page.locator("#vt-view-map .vt-map").first.wait_for()
    glasses = [one.bounding_box() for one in page.locator("#vt-view-map .vt-glass").all()]
    assert glasses[0]["y"] == glasses[1]["y"] < 600
    for view in ("Methods", "Layers", "Heads", "Detail", "Guide", "Transfer", "Rewrite", "Words"):
        tab = page.get_by_role("tab", name=view)
        assert tab.is_visible()
        assert tab.bounding_box()["height"] >= 40
        assert page.evaluate("document.documentElement.scrollWidth") <= 768, view
    page.goto(f"{visitor.server.address}/?view=transfer&example=pair&target=8&against=0&steps=5")
    page.locator("#vt-view-transfer .vt-panel").first.wait_for(timeout=60_000)
    widths = [one.bounding_box()["width"] for one in page.locator("#vt-view-transfer .vt-glass").all()]
    assert abs(widths[0] - widths[1]) < 2  # the player below them makes no narrow column of its own
    visitor.leave()


@slow
def test_everything_that_can_be_used_has_a_name(visitor):
    page = visitor.come("?view=map&example=pair&target=0")
    page.locator("#vt-view-map .vt-map").first.wait_for()
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, [tabindex='0']")].filter(one => {
            if (!one.checkVisibility()) return false;
            const labels = one.labels ? [...one.labels].map(l => l.textContent).join("") : "";
            return !(one.getAttribute("aria-label") || one.textContent.trim() || one.title || labels.trim()
                     || one.getAttribute("aria-labelledby") || one.closest("label")?.textContent.trim()
                     || one.matches("pre, [role=tabpanel]"));
        }).map(one => one.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
    assert page.locator("img:not([alt])").count() == 0


@slow
def test_first_map_after_an_upload_on_the_real_model(chromium, shared):
    """2 s on two quiet cores; the clock runs from the file's choice to the map in the page."""
    from app.conftest import Running

    weights = shared / "models" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    running = Running("--model", "timm/vit_tiny_patch16_224", "--checkpoint", str(weights))
    visitor = Visitor(chromium, running)
    page = visitor.come()
    took = []
    for path in sorted((shared / "images" / "imagenet-val").glob("*.JPEG"))[:4]:
        began = time.perf_counter()
        visitor.upload(path.read_bytes(), path.name)
        page.locator("#vt-view-map", has_text=path.name).wait_for()
        took.append(time.perf_counter() - began)
    visitor.leave()
    running.stop()
    assert min(took) < 2, f"first map after the upload: {took} s"


@slow
def test_a_refusal_is_said_in_a_sentence_and_the_page_goes_on(visitor):
    """The server was started anew, say, and does not know the visitor's cookie."""
    page = visitor.come("?view=map&example=pair")
    visitor.linked("example=pair")
    visitor.context.clear_cookies()
    page.locator(".vt-class", has_text="murlo").click()
    page.get_by_text("the page does not know you (any more): load it again").wait_for()
    page.wait_for_function("!('busy' in document.body.dataset)")
    page.reload()
    page.locator(".vt-class", has_text="murlo").click()
    visitor.linked("target=8")
    visitor.context.set_offline(True)
    page.locator(".vt-class", has_text="konka").click()
    page.get_by_text("The server does not answer: is it still running?").wait_for()
    visitor.context.set_offline(False)
    page.locator(".vt-class", has_text="konka").click()
    visitor.linked("against=9")
    page.get_by_text("The server does not answer").wait_for(state="detached")


@slow
def test_a_script_in_a_name_does_not_run(visitor, creature):
    """Neither from the name of a guide of one's own, nor where a view were to forget to escape one."""
    page = visitor.come("?view=map&example=pair")
    visitor.linked("example=pair")
    page.get_by_role("tab", name="Guide").click()
    visitor.linked("view=guide")
    name = "<img src=x onerror='window.ran=1'>.png"
    file = {"name": name, "mimeType": "image/png", "buffer": creature}
    page.locator("input[aria-label='Choose a guide']").set_input_files(file)
    page.get_by_text("The guide will be your picture").wait_for()
    page.evaluate("document.querySelector('#vt-view-guide').insertAdjacentHTML('beforeend', "
                  "'<img src=x onerror=\"window.ran=2\"><a href=\"javascript:window.ran=3\">x</a>')")  # fmt: skip
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    page.evaluate("setTimeout(() => { try { Function('return 1')(); } catch (e) { window.made = e.name; } })")
    page.wait_for_function("window.made === 'EvalError'")
    visitor.errors.clear()  # the policy's own words about the handler
