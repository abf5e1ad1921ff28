"""What visitors can do, without a browser: views, errors in kind words, downloads, two visitors apart."""

import io
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from app.conftest import LIMITS, encoded, new_service
from PIL import Image

from vitrail.app import page
from vitrail.app.fragments import CONTROLS, WORD_CONTROLS
from vitrail.app.question import LONG, Question
from vitrail.app.service import SORRY, PageUpdate, Service, excuse, read
from vitrail.app.session import ModelCache, Sessions
from vitrail.cli import options as shared
from vitrail.errors import ImageError, OptionError, UnknownModelError
from vitrail.explanation import Explanation
from vitrail.models import load


def last(shown) -> PageUpdate:
    *_, end = shown
    return end


def test_a_new_visitor_sees_a_map_at_once(service):
    shown = service.arrive("ada", "")
    assert shown.question.example == "pair"
    assert shown.status == ""
    assert shown.views["map"].count("<img") == 3  # the photograph, and the photograph under its map
    assert shown.classes.count("<button") >= 6
    assert shown.files == ("png", "svg", "safetensors")


def test_the_page_opens_on_two_things_the_one_against_the_other(service):
    shown = service.arrive("ada", "")
    assert (shown.question.target, shown.question.against) == (0, 8)
    assert "against murlo" in shown.views["map"]
    assert shown.examples == ("pair", "single", "sibling", "chimera", "meeting")


def test_clicking_a_second_class_compares_and_never_replaces(service):
    query = service.arrive("ada", "example=pair").question.query()
    murlo, tavel = 8, 0  # murlo is predicted, and nobody has chosen it
    two = service.choose("ada", query, tavel)
    assert (two.question.target, two.question.against) == (murlo, tavel)
    assert "against tavel" in two.views["map"]
    assert "vt-is-against" in two.classes
    assert "complete · difference · libra gradient" in two.views["map"]
    swapped = service.choose("ada", two.question.query(), None)
    assert (swapped.question.target, swapped.question.against) == (tavel, murlo)
    one = service.choose("ada", swapped.question.query(), tavel)
    assert (one.question.target, one.question.against) == (tavel, None)
    assert "against" not in one.views["map"].partition("<figcaption><b")[2].partition("</figcaption>")[0]


def test_the_caption_says_the_gradient_and_what_competes(service):
    shown = service.arrive("ada", "example=pair")
    assert "libra gradient, class competition" in shown.views["map"]
    assert "less what argues for tavel" in shown.views["map"]
    asked = service.change("ada", shown.question.query(), {"gradient": "leaf"})
    assert "leaf gradient" in asked.views["map"]
    assert "competition" not in asked.views["map"]
    assert "less what argues" not in asked.views["map"]
    full = service.change("ada", shown.question.query(), {"gradient": "full"})
    assert "full gradient" in full.views["map"]
    assert " gradient" not in service.change("ada", shown.question.query(), {"method": "rollout"}).views["map"]


def test_the_page_offers_every_gradient_mode_of_the_command(service):
    offered = re.findall(r'name="gradient" value="(\w+)"', page.page(["bestiary"], 1))
    assert offered == [Question.gradient, *shared.Gradient]
    query = service.arrive("ada", "example=pair").question.query()
    assert "gim gradient" in service.change("ada", query, {"gradient": "gim"}).views["map"]


def test_examples_are_of_the_model(monkeypatch):
    """A model of photographs is not asked about creatures: ImageNet's classes have cats and coffee, and no tavel."""
    from vitrail.app.pictures import CAT, COFFEE, EXAMPLES, offered

    creatures = load("bestiary")
    named = [*CAT, *COFFEE, "zebra, striped horse"] + [f"thing {n}" for n in range(13)]
    photographs = replace(creatures, name="photographs", class_names=tuple(named[:20]))
    unknown = replace(creatures, name="unknown", class_names=None)
    assert offered(photographs) == ("cat-and-coffee", "cat", "coffee") == offered(unknown)
    models = {"first": photographs, "bestiary": creatures, "other": unknown}
    service = Service(ModelCache("first", load=lambda name, checkpoint: models[name], allowed=("other",)), LIMITS)
    shown = service.arrive("ada", "")
    assert shown.question.example == "cat-and-coffee"
    assert named[shown.question.target] in CAT
    assert named[shown.question.against] in COFFEE
    other = service.change("ada", shown.question.query(), {"model": "bestiary"})
    assert (other.question.example, other.question.target, other.question.against) == ("pair", 0, 8)
    alone = service.change("ada", shown.question.query(), {"model": "other"})
    assert (alone.question.example, alone.question.target) == ("cat-and-coffee", None)
    for key, example in EXAMPLES.items():
        assert service.example("ada", "", key).status == "", key
        assert example.known([word for words in example.objects for word in words[:1]])


def test_a_real_imagenet_model_opens_on_a_cat_against_a_coffee(vit_tiny):
    shown = Service(ModelCache("tiny", load=lambda name, checkpoint: vit_tiny), LIMITS).arrive("ada", "")
    assert shown.question.example == "cat-and-coffee"
    names = [vit_tiny.class_name(index) for index in (shown.question.target, shown.question.against)]
    assert names == ["Egyptian cat", "espresso"]
    found = shown.views["map"].partition('data-scores="')[2].partition('"')[0].replace("−", "-").split()
    values = [float(one.replace("×10⁻⁵", "e-5").replace("×10⁻⁶", "e-6")) for one in found]
    halves = np.array(values).reshape(14, 2, 7).sum(axis=(0, 2))
    assert halves[0] > 0 > halves[1]  # the cat is on the left


def test_back_finds_the_pictures_that_lay_there_before(service, creature):
    first = service.arrive("ada", "").question.query()
    mine = service.upload("ada", first, "mine.png", creature).question.query()
    other = encoded(np.full((40, 40, 3), 90, dtype=np.uint8))
    again = service.upload("ada", mine, "flat.png", other).question.query()
    assert len({first, mine, again}) == 3
    for query, name in ((mine, "mine.png"), (first, "pair.png"), (again, "flat.png"), (mine, "mine.png")):
        shown = service.arrive("ada", query, back=True)
        assert shown.status == ""
        assert name in shown.views["map"]
        assert shown.question.query() == query


def test_a_page_that_is_loaded_again_has_its_picture_and_others_have_not(service, creature):
    query = service.upload("ada.tab1", "", "mine.png", creature).question.query()
    service.sessions.leave("ada.tab1")
    shown = service.arrive("ada.tab2", query + "&view=heads")
    assert shown.status == ""
    assert "mine.png" not in service.arrive("eve.tab1", query).views.get("map", "")
    assert "uploads are not kept" in service.arrive("eve.tab1", query).status
    assert "not kept any more" in service.choose("eve.tab1", query, 0).status


def test_a_drawing_that_ends_while_something_else_is_looked_at_leaves_that_alone(service):
    """The link said "transfer" on whatever view the visitor had turned to meanwhile."""
    query = service.arrive("ada", "example=pair&target=8&against=0").question.query()
    steps = service.draw("ada", query, {"view": "transfer", "steps": 5})
    begun = next(steps)
    assert begun.question.view == "transfer"
    service.change("ada", begun.question.query(), {"view": "map"})
    *_, end = steps
    assert end.question is None
    assert end.recipes is None
    assert "vt-film" in end.views["transfer"]
    back = service.change("ada", begun.question.changed(view="map").query(), {"view": "transfer"})
    assert (back.views, back.files) == ({}, ("png", "svg", "webp", "safetensors"))  # the page has it still
    other = service.change("ada", begun.question.changed(view="map", target=3).query(), {"view": "transfer"})
    assert "Move attention" in other.views["transfer"]  # it would be of another class


@pytest.mark.slow
def test_the_guided_map_is_titled_with_what_is_said_beside_the_guide(service):
    import vitrail
    from vitrail.app.pictures import example_picture
    from vitrail.outputs import percent

    query = service.arrive("ada", "example=single").question.query()
    html = last(service.draw("ada", query, {"view": "guide"})).views["guide"]
    ex = vitrail.explain(load("bestiary"), example_picture("single").open(), guide="auto")
    beside, alone = percent(ex.guided[0].probability(int(ex.target))), percent(ex.probability(int(ex.target)))
    assert beside != alone
    titles = [part.partition("</figcaption>")[0] for part in html.split("<figcaption>")[1:]]
    assert beside + " beside the guide" in titles[1]
    assert alone in titles[2]


def test_the_film_says_what_became_of_both_logits(service):
    query = service.arrive("ada", "example=pair&target=8&against=0").question.query()
    html = last(service.draw("ada", query, {"view": "transfer", "steps": 20})).views["transfer"]
    assert "murlo falls from 6.12 to" in html
    assert "tavel falls from 6.01 to" in html
    assert "grow" not in html


def test_the_map_that_can_be_saved_is_the_one_that_is_explained(service, tmp_path):
    import vitrail
    from vitrail.app.pictures import example_picture

    shown = service.arrive("ada", "example=pair&target=0&against=8&method=gae")
    name, kind, data = service.download("ada", shown.question.query(), "safetensors")
    (tmp_path / "x.safetensors").write_bytes(data)
    found = Explanation.load(tmp_path / "x.safetensors")
    wanted = vitrail.explain(load("bestiary"), example_picture("pair").open(), 0, against=8, method="gae")
    assert torch.equal(found.scores, wanted.scores)
    assert (name, kind) == ("pair.map.safetensors", "application/octet-stream")
    assert service.download("ada", shown.question.query(), "png")[2].startswith(b"\x89PNG")
    assert b"<svg" in service.download("ada", shown.question.query(), "svg")[2]


SURFACES = ["bestiary", "timm/test_vit", pytest.param("timm/vit_tiny_patch16_224", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", SURFACES)
def test_python_command_and_page_give_one_map(name, creature, tmp_path, request):
    """The same picture and class, everything else by default: equal bit for bit."""
    import timm
    from safetensors.torch import save_file
    from typer.testing import CliRunner

    import vitrail
    from vitrail.cli import app

    weights = None
    if name == "timm/test_vit":
        weights = tmp_path / "weights.safetensors"
        save_file(timm.create_model("test_vit").state_dict(), weights)
    elif name != "bestiary":
        weights = next((request.getfixturevalue("shared") / "models").glob("vit_tiny_patch16_224*"))
    picture = tmp_path / "tavel.png"
    picture.write_bytes(creature)
    wanted = vitrail.explain(load(name, checkpoint=weights), picture, 3)

    words = ["explain", str(picture), "--model", name, "--target", "3", "--format", "safetensors"]
    words += ["--output", str(tmp_path / "out"), *(["--checkpoint", str(weights)] if weights else [])]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    (saved,) = (tmp_path / "out").glob("*.safetensors")
    assert torch.equal(Explanation.load(saved).scores, wanted.scores)

    service = Service(
        ModelCache(name, load=lambda name, weights: load(name, checkpoint=weights), checkpoint=weights), LIMITS
    )
    query = service.upload("ada", "", "tavel.png", creature).question.query()
    asked = service.arrive("ada", "&".join([*(one for one in query.split("&") if "target=" not in one), "target=3"]))
    assert asked.status == ""
    (tmp_path / "page.safetensors").write_bytes(service.download("ada", asked.question.query(), "safetensors")[2])
    assert torch.equal(Explanation.load(tmp_path / "page.safetensors").scores, wanted.scores)


def test_a_patch_says_its_score_and_what_its_token_attends_to(service):
    import vitrail
    from vitrail.app.pictures import example_picture
    from vitrail.plotting.canvas import number

    shown = service.arrive("ada", "example=pair&target=8&gradient=full&row=8&col=7")
    ex = vitrail.explain(load("bestiary"), example_picture("pair").open(), 8, gradient="full")
    assert number(float(ex.scores[0, 8, 7]), sign=True) in shown.views["map"]
    assert "row 9, column 8 attends to" in shown.views["map"]
    other = service.change("ada", shown.question.query(), {"row": 99, "col": 99})
    assert "vt-problem" in other.status
    assert "99" in other.status


def test_a_finer_map_has_its_cells_and_goes_on_by_patches(service, monkeypatch):
    from vitrail.app.question import ViewContext
    from vitrail.plotting.canvas import number

    whole, made = ViewContext.explain, []
    monkeypatch.setattr(ViewContext, "explain", lambda *given, **words: made.append(whole(*given, **words)) or made[-1])
    shown = service.arrive("ada", "example=pair&target=8&resolution=4")
    means = torch.nn.functional.avg_pool2d(made[0].scores, 4)[0]
    said = " ".join(number(float(one), sign=True) for one in means.ravel())
    assert f' data-rows="12" data-cols="12" data-scores="{said}"' in shown.views["map"]
    assert "libra gradient, class competition · 4 × 4 cells, 4 views" in shown.views["map"]
    assert "Mean over 4 views of the image" in shown.views["map"]
    offered = re.findall(r'value="(\w+)"( selected)?', shown.cells)
    assert offered == [("1", ""), ("2", ""), ("4", " selected"), ("pixel", "")]
    patch = service.change("ada", shown.question.query(), {"row": 8, "col": 7})
    assert f"scores <b class='vt-for'>{number(float(means[8, 7]), sign=True)}</b>" in patch.views["map"]
    assert [one.grid for one in made] == [(48, 48), (12, 12)]  # the token's, and the map is not made again


def test_what_cannot_be_finer_is_not_offered_and_breaks_nothing(service):
    plain = service.arrive("ada", "example=pair&target=8&method=rollout")
    assert plain.cells == ""
    shown = service.arrive("ada", "example=pair&target=8&method=rollout&resolution=4")
    assert (shown.cells, shown.views["map"]) == ("", plain.views["map"])
    assert shown.recipes == plain.recipes
    bad = service.change("ada", shown.question.query(), {"resolution": 3, "method": "gae"})
    assert (
        "“Cells per patch” at 3 does not cut patches of 8×8 pixels into whole ones: choose one of 1, 2, 4" in bad.status
    )
    assert re.findall(r'value="(\w+)"( selected)?', bad.cells) == [("1", ""), ("pixel", ""), ("3", " selected")]
    heads = service.change("ada", bad.question.query(), {"view": "heads"})
    without = service.arrive("ada", heads.question.changed(resolution="1").query())
    assert (heads.views, heads.recipes, heads.cells) == (without.views, without.recipes, None)


def test_a_map_of_several_passes_tells_its_progress(service, monkeypatch):
    monkeypatch.setattr("vitrail.app.jobs.EVERY", 0.002)
    link = "example=pair&target=8&resolution=2"
    told = list(service.answer(lambda one: one.arrive("ada", link)))
    assert all("views of the image: " in one.status and one.question is None for one in told[:-1])
    assert len(told) > 1
    assert (told[-1].status, told[-1].question) == ("", read(link))


def test_a_map_of_several_passes_ends_with_its_visitor(service, monkeypatch, caplog):
    monkeypatch.setattr("vitrail.app.jobs.EVERY", 0.002)

    workers = []

    def endless(*_, progress, **__):
        workers.append(threading.current_thread())
        while True:
            progress("views of the image", 0, 4)
            time.sleep(0.002)

    monkeypatch.setattr("vitrail.app.question.explain", endless)
    left = service.answer(lambda one: one.arrive("eve", "example=pair&target=8&resolution=2"))
    assert "progressbar" in next(left).status
    left.close()
    workers[0].join(20)
    with service.queue.quick():  # the model is free again
        pass
    assert service.sessions.of("eve").answers == {}
    assert caplog.text == ""


@pytest.mark.parametrize("view", ["layers", "heads", "detail"])
def test_the_other_quick_views(service, view):
    shown = service.arrive("ada", f"example=pair&target=0&against=8&view={view}")
    assert shown.status == ""
    assert shown.views[view].count("data:image/webp") >= 4
    for text in shown.recipes:
        compile(text, "recipe", "exec") if text.startswith("import") else text.index("vitrail ")


def test_the_gallery_keeps_a_place_for_methods_that_fail(service, monkeypatch):
    from vitrail.app.question import ViewContext

    whole = ViewContext.explain

    def explain(self, method=None, **more):
        if method == "rollout":
            raise OptionError("no such thing <here>")
        if method == "raw":
            raise OSError("/home/ada/secret")
        return whole(self, method, **more)

    monkeypatch.setattr(ViewContext, "explain", explain)
    monkeypatch.setattr("vitrail.app.views.comparisons.choose_methods", lambda _: _few("raw", "rollout", "complete"))
    shown = last(service.draw("ada", service.arrive("ada", "").question.query(), {"view": "methods"}))
    html = shown.views["methods"]
    assert html.count('class="vt-panel"') == 4
    assert "no such thing &lt;here&gt;" in html
    assert "OSError" in html
    assert "secret" not in html
    assert " ms · 1F" in html


def _few(*names):
    from vitrail.methods.registry import choose_methods

    return choose_methods(list(names))


@pytest.mark.slow
def test_a_film_of_attention_on_its_way(service):
    query = service.arrive("ada", "example=pair&target=8&against=0").question.query()
    shown = last(service.draw("ada", query, {"view": "transfer", "steps": 5}))
    assert shown.views["transfer"].count('class="vt-map vt-frame"') == 2 * 6
    assert shown.files == ("png", "svg", "webp", "safetensors")
    assert service.download("ada", shown.question.query(), "webp")[2][8:12] == b"WEBP"


def test_rewriting_gives_the_very_file_that_was_classified(service, creature):
    from vitrail.counterfactual import classify

    query = service.upload("ada", "", "tavel.png", creature).question.query()
    shown = last(service.draw("ada", query + "&against=1", {"view": "rewrite", "until": 0.8}))
    name, _, data = service.download("ada", shown.question.query(), "png")
    model = load("bestiary")
    answer = classify(model, data).softmax(0)
    assert float(answer[1]) >= 0.8
    assert Image.open(io.BytesIO(data)).size == (180, 180)
    assert name == "tavel.rewritten-borrin.png"


def test_a_guide_of_ones_own(service, creature):
    query = service.arrive("ada", "example=single").question.query()
    told = service.guide("ada", query, "other.png", creature)
    assert "other.png" in told.views["guide"]
    shown = last(service.draw("ada", query, {"view": "guide"}))
    assert "your guide, which it sees as" in shown.views["guide"]
    bad = service.guide("ada", query, "x.png", b"nothing")
    assert "cannot be used" in bad.status


def test_broken_uploads_are_told_kindly_and_change_nothing(service):
    shown = service.arrive("ada", "")
    for content in (b"GIF8", b"", None, b"x" * 2_000_001):
        told = service.upload("ada", shown.question.query(), "<b>.png", content)
        assert told.status.startswith('<div class="vt-problem" role="alert">This picture cannot be used')
        assert "Traceback" not in told.status
        assert "b&#x27;" not in told.status  # nor the bytes of the file
    assert service.choose("ada", shown.question.query(), 0).status == ""


def test_what_breaks_inside_is_not_shown_but_logged(service, monkeypatch, caplog):
    service.arrive("ada", "")
    monkeypatch.setattr("vitrail.app.service.draw_classes", lambda context: 1 / 0)
    told = service.choose("ada", "view=map&example=pair", 0)
    assert SORRY in told.status
    assert "division" not in told.status
    assert "ZeroDivisionError" in caplog.text


def test_two_visitors_have_two_pictures(service, creature):
    one = service.arrive("ada", "example=single")
    two = service.upload("bob", "", "mine.png", creature)
    assert service.choose("ada", one.question.query(), 5).views["map"].count("single.png") == 1
    assert service.choose("bob", two.question.query(), 0).views["map"].count("mine.png") == 1


def test_a_link_of_an_upload_waits_for_the_picture_and_then_is_restored(service, creature):
    waiting = service.arrive("ada", "view=map&target=1&against=0&method=gae")
    assert "uploads are not kept" in waiting.status
    shown = service.upload("ada", waiting.question.query(), "mine.png", creature)
    assert (shown.question.target, shown.question.against, shown.question.method) == (1, 0, "gae")
    again = service.upload("ada", shown.question.query(), "mine.png", creature)
    assert (again.question.target, again.question.against) == (None, None)


def test_models_are_those_that_the_operator_named(service, tmp_path):
    shown = service.arrive("ada", "example=pair&model=timm/vit_base_patch16_224")
    assert "whoever runs it can offer more" in shown.status
    assert service.arrive("ada", "example=pair&model=bestiary/label-errors").status == ""
    asked = []

    def open_one(name, checkpoint):
        asked.append(name)
        return load("bestiary")

    models = ModelCache("bestiary", load=open_one, allowed=("timm/one",))
    models.model("timm/one")
    for name in ("timm/two", "../weights.pth", "/etc/passwd", "https://example.org/x"):
        with pytest.raises(UnknownModelError, match="can offer more"):
            models.model(name)
    assert asked == ["bestiary", "timm/one"]


def test_work_is_stopped(service):
    query = service.arrive("ada", "example=pair").question.query()
    steps = service.draw("ada", query, {"view": "transfer", "steps": 100})
    next(steps)
    service.stop("ada")
    assert "Stopped" in last(steps).views["transfer"]
    assert service.sessions.of("ada").working is None
    with pytest.raises(ImageError, match="draw it first"):
        service.download("ada", read(query).changed(view="transfer").query(), "png")


# Each view with what a visitor may have chosen in it.
COPIED = [
    "view=map&target=0&against=8&row=3&col=4&resolution=2",
    "view=heads&target=0&against=8&layer=2&head=1&gradient=libra",
    "view=detail&target=0&gradient=leaf",
    *(
        pytest.param(link, marks=pytest.mark.slow)
        for link in (
            "view=map&target=0&against=8&row=3&col=4",
            "view=map&target=8&gradient=leaf&method=attn_lrp",
            "view=map&target=0&against=8&gradient=full&method=gae&resolution=pixel",
            "view=map&target=8&method=rollout&resolution=4",
            "view=methods&target=8&methods=complete,gae,raw",
            "view=methods&target=0&against=8&gradient=leaf&methods=complete,layercam",
            "view=layers&target=0&against=8&gradient=leaf",
            "view=guide&target=0&against=8&layout=stack&gradient=libra",
            "view=transfer&target=8&steps=5",
            "view=rewrite&target=8&until=0.6&budget=0.0627450980392156854",
        )
    ),
]


@pytest.mark.parametrize("link", COPIED)
def test_what_is_copied_gives_the_maps_that_are_seen(service, tmp_path, monkeypatch, link):
    """As Python and in the shell, to the bit: the text as it is copied, and the numbers that the page has drawn."""
    monkeypatch.chdir(tmp_path)
    shown, seen = drawn(service, monkeypatch, f"example=pair&{link}")
    assert shown.status == ""
    python, command = shown.recipes
    found = run_python(python)
    view = shown.question.view
    if view in ("map", "guide"):
        assert torch.equal(found["ex"].scores, seen[-2 if "row" in link or view == "guide" else -1].scores)
    if "row" in link:
        assert torch.equal(found["token"].scores, seen[-1].scores)
    if view == "methods":
        assert [one.method for one in found["found"].answers] == [one.method for one in seen]
        for one, other in zip(found["found"].answers, seen, strict=True):
            assert torch.equal(one.explanation.scores.flatten(), other.scores.flatten()), one.method
    if view in ("layers", "heads"):
        assert torch.equal(found["found"].explanation.scores, seen[0].explanation.scores)
        assert torch.equal(found["found"].scores, seen[0].scores)
    if view == "heads":
        assert torch.equal(found["one"], seen[0].scores[2, 1])
    if view == "detail":
        for loss, ex in seen[0].maps.items():
            assert torch.equal(found["found"].maps[loss].scores, ex.scores), loss
    if view == "transfer":
        assert torch.equal(found["found"].maps, seen[0].maps)
        assert torch.equal(found["found"].logits, seen[0].logits)
    if view == "rewrite":
        assert np.array_equal(found["found"].picture, seen[0].picture)
    compare_commands(command, view, seen, "row" in link)


def drawn(service, monkeypatch, link):
    """The page's answer, and what it was drawn from."""
    import vitrail.app.views as views
    from vitrail.app.question import ViewContext

    seen = []

    def spying(function):
        def spy(*given, **named):
            seen.append(function(*given, **named))
            return seen[-1]

        return spy

    with monkeypatch.context() as patch:
        patch.setattr(ViewContext, "explain", spying(ViewContext.explain))
        for module, name in (
            (views.map, "head_shares"),
            (views.comparisons, "detail"),
            (views.comparisons, "explain"),
            (views.counterfactual, "transfer"),
            (views.counterfactual, "rewrite"),
        ):
            patch.setattr(module, name, spying(getattr(module, name)))
        shown = service.arrive("ada", link)
        if shown.question.view in LONG:
            names = ("methods", "layout", "steps", "until", "budget")
            changes = {name: getattr(shown.question, name) for name in names} | {"view": shown.question.view}
            shown = last(service.draw("ada", shown.question.query(), changes))
    return shown, seen


def run_python(text):
    namespace = {}
    exec(compile(text, "copied", "exec"), namespace)
    return namespace


def run_shell(text):
    """The lines as a shell reads them, the commands in this process."""
    import shlex

    from typer.testing import CliRunner

    from vitrail.cli import app

    for line in text.strip().splitlines():
        words = shlex.split(line)
        if words[0] == "python":
            exec(words[2], {})
            continue
        assert words[0] == "vitrail"
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code in (0, 1 if "rewrite" in words else 0), (line, result.output, result.exception)


def compare_commands(text, view, seen, patch):
    """Run the commands as they are, then once more with the numbers asked for, and compare these."""
    from pathlib import Path

    from vitrail.counterfactual.transfer_result import Transfer

    run_shell(text)
    assert any(path.suffix == ".png" for path in Path("out").rglob("*.png"))
    if view == "rewrite":
        pixels = [np.asarray(Image.open(path)) for path in Path("out").rglob("*.png")]
        assert any(np.array_equal(one, seen[0].picture) for one in pixels)
        return
    if view != "transfer":
        run_shell(
            "\n".join(f"{line} -f safetensors" for line in text.strip().splitlines() if line.startswith("vitrail"))
        )
    files = sorted(Path("out").rglob("*.safetensors"), key=lambda path: (len(path.parts), path.name))
    if view == "transfer":
        found = next(Transfer.load(path) for path in files if "state" not in path.name)
        for step in seen[0].snapshots:
            assert torch.equal(found.after(step).scores, seen[0].after(step).scores), step
        return
    maps = [Explanation.load(path).scores.flatten() for path in files]
    if view == "detail":
        wanted = [ex.scores for ex in seen[0].maps.values()]
    elif view in ("layers", "heads"):
        wanted = [seen[0].explanation.scores]
    else:
        wanted = [ex.scores for ex in seen[: 1 if view == "guide" else 1 + patch if view == "map" else None]]
    assert len(maps) == len(wanted)
    for one in wanted:
        assert any(one.numel() == other.numel() and torch.equal(one.flatten(), other) for other in maps)


@pytest.mark.slow
def test_what_is_copied_names_the_visitors_own_files(service, creature, tmp_path, monkeypatch):
    """Their files have other names than the page shows them by, and may begin with a hyphen or hold a quote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-my 'zoo'.png").write_bytes(creature)
    (tmp_path / "a guide.png").write_bytes(creature_of("nimbo"))
    query = service.upload("ada", "", "-my 'zoo'.png", creature).question.query()
    service.guide("ada", query, "a guide.png", creature_of("nimbo"))
    shown, seen = drawn(service, monkeypatch, f"{query}&view=guide")
    assert torch.equal(run_python(shown.recipes[0])["ex"].scores, seen[0].scores)
    compare_commands(shown.recipes[1], "guide", seen, False)


def creature_of(species):
    from vitrail.bestiary import render, sample_scene

    return encoded(render(sample_scene("single", seed=5, species=species), 180).image)


def test_classes_are_copied_by_a_name_that_is_read_as_them():
    """Of two cranes neither is "crane", and a name that looks like a number or an option is neither."""
    from vitrail.app.exports import ExportContext, as_command, as_python
    from vitrail.app.pictures import example_picture

    names = ("crane, bird", "crane, machine", "7", "-x", "o'hara") + tuple(f"thing {n}" for n in range(15))
    model = replace(load("bestiary"), class_names=names)
    for target, word, option in (
        (0, "0", "0"),
        (1, "1", "1"),
        (2, "'7'", "7"),
        (3, "'-x'", "-x"),
        (4, '"o\'hara"', ""),
    ):
        told = ExportContext(
            question=read("example=pair"), model=model, picture=example_picture("pair"), target=target, rival=9
        )
        assert f"vitrail.explain(model, image, {word}, " in as_python(told)
        line = as_command(told).splitlines()[1]
        assert "--target=-x" in line if target == 3 else f"--target {option}" in line
        assert model.class_index(names[2]) == 2


def test_mad_changes_change_nothing(service):
    query = service.arrive("ada", "example=pair&target=0").question.query()
    mad = {"target": "x" * 999, "row": [1], "steps": {}, "method": 7, "colour": "red", "__class__": "x", "view": "etc"}
    told = service.change("ada", query, mad)
    assert told.status == ""
    assert told.question == read(query)


def test_desks_are_bounded_by_the_service(creature):
    few = Service(new_service().models, sessions=Sessions(most=2))
    for visitor in ("ada", "bob", "cem"):
        few.upload(visitor, "", "mine.png", creature)
    told = few.choose("ada", "view=map", 0)
    assert "Put a picture in first" in told.status


def test_grey_and_tiny_pictures_are_explained_too(service):
    flat = np.full((3, 5), 128, dtype=np.uint8)
    shown = service.upload("ada", "", "flat.png", encoded(flat))
    assert shown.status == ""
    assert "data:image/webp" in shown.views["map"]


def test_errors_name_the_pages_own_controls():
    """Every control that a message names stands on the page under that label."""
    folder = Path(page.__file__ or "").parent
    written = "".join(
        path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".py", ".js", ".html")
    )
    for name, label in (*CONTROLS.items(), *WORD_CONTROLS.items()):
        assert written.count(label) > 1, name  # in the table, and where the control is made
    told = excuse(
        OptionError('gradient="warm" is unknown: give "full" or gradient="libra", and target=3; grid= helps too')
    )
    assert "“Gradient” at warm is unknown" in told
    assert "“Why this class?” at 3" in told
    assert "grid= helps too (grid=: in Python, by whoever runs this page)" in told
