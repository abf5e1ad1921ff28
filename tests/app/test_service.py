"""What visitors can do, without a browser: views, errors in kind words, downloads, two visitors apart."""

import io
import json

import numpy as np
import pytest
import torch
from app.conftest import base64_of, encoded, new_service
from PIL import Image

from vitrail.app.desk import Desks
from vitrail.app.service import SORRY, Service, Shown, read
from vitrail.app.shelf import Shelf
from vitrail.errors import ImageError, OptionError, UnknownModelError
from vitrail.explanation import Explanation
from vitrail.models import load


def last(shown) -> Shown:
    *_, end = shown
    return end


def test_a_new_visitor_sees_a_map_at_once(service):
    shown = service.arrive("ada", "")
    assert shown.question.example == "pair"
    assert shown.status == ""
    assert shown.views["map"].count("<img") == 3  # the photograph, and the photograph under its map
    assert shown.classes.count("<button") >= 6
    assert shown.files == ("png", "svg", "safetensors")


def test_clicking_classes_asks_for_one_and_for_one_against_another(service):
    query = service.arrive("ada", "").question.query()
    tavel, murlo = 0, 8
    one = service.choose("ada", query, tavel)
    assert "tavel <em>" in one.views["map"]
    assert "against murlo" not in one.views["map"]
    two = service.choose("ada", one.question.query(), murlo)
    assert "against murlo" in two.views["map"]
    assert "vt-is-against" in two.classes
    assert "normalized difference" in two.views["map"]


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


def test_a_patch_says_its_score_and_what_its_token_attends_to(service):
    import vitrail
    from vitrail.app.pictures import example_picture
    from vitrail.render.lettering import number

    shown = service.arrive("ada", "example=pair&target=8&gradient=full&row=8&col=7")
    ex = vitrail.explain(load("bestiary"), example_picture("pair").open(), 8)
    assert number(float(ex.scores[0, 8, 7]), sign=True) in shown.views["map"]
    assert "row 9, column 8 attends to" in shown.views["map"]
    other = service.change("ada", shown.question.query(), {"row": 99, "col": 99})
    assert "vt-problem" in other.status
    assert "99" in other.status


@pytest.mark.parametrize("view", ["layers", "heads", "detail"])
def test_the_other_quick_views(service, view):
    shown = service.arrive("ada", f"example=pair&target=0&against=8&view={view}")
    assert shown.status == ""
    assert shown.views[view].count("data:image/webp") >= 4
    for text in shown.recipes:
        compile(text, "recipe", "exec") if text.startswith("import") else text.index("vitrail ")


def test_the_gallery_keeps_a_place_for_methods_that_fail(service, monkeypatch):
    from vitrail.app.views.asking import Asked

    whole = Asked.explain

    def explain(self, method=None, **more):
        if method == "rollout":
            raise OptionError("no such thing <here>")
        if method == "raw":
            raise OSError("/home/ada/secret")
        return whole(self, method, **more)

    monkeypatch.setattr(Asked, "explain", explain)
    monkeypatch.setattr("vitrail.app.views.gallery.choose_methods", lambda _: _few("raw", "rollout", "complete"))
    shown = last(service.draw("ada", service.arrive("ada", "").question.query(), {"view": "methods"}))
    html = shown.views["methods"]
    assert html.count('class="vt-panel"') == 4
    assert "no such thing &lt;here&gt;" in html
    assert "OSError" in html
    assert "secret" not in html
    assert " ms · 1F" in html


def _few(*names):
    from vitrail.methods.choosing import choose_methods

    return choose_methods(list(names))


def test_a_film_of_attention_on_its_way(service):
    query = service.arrive("ada", "example=pair&target=8&against=0").question.query()
    shown = last(service.draw("ada", query, {"view": "transfer", "steps": 5}))
    assert shown.views["transfer"].count('class="vt-map vt-frame"') == 2 * 6
    assert shown.files == ("png", "svg", "webp", "safetensors")
    assert service.download("ada", shown.question.query(), "webp")[2][8:12] == b"WEBP"


def test_rewriting_gives_the_very_file_that_was_classified(service, creature):
    from vitrail.experiments import classify

    query = service.upload("ada", "", "tavel.png", base64_of(creature)).question.query()
    shown = last(service.draw("ada", query + "&against=1", {"view": "rewrite", "until": 0.8}))
    name, _, data = service.download("ada", shown.question.query(), "png")
    model = load("bestiary")
    answer = classify(model, data).softmax(0)
    assert float(answer[1]) >= 0.8
    assert Image.open(io.BytesIO(data)).size == (180, 180)
    assert name == "tavel.rewritten-borrin.png"


def test_a_guide_of_ones_own(service, creature):
    query = service.arrive("ada", "example=single").question.query()
    told = service.guide("ada", query, "other.png", base64_of(creature))
    assert "other.png" in told.views["guide"]
    shown = last(service.draw("ada", query, {"view": "guide"}))
    assert "your guide, which it sees as" in shown.views["guide"]
    bad = service.guide("ada", query, "x.png", base64_of(b"nothing"))
    assert "cannot be used" in bad.status


def test_broken_uploads_are_told_kindly_and_change_nothing(service):
    shown = service.arrive("ada", "")
    for content in (base64_of(b"GIF8"), "%%%", "", base64_of(b"x" * 2_000_001)):
        told = service.upload("ada", shown.question.query(), "<b>.png", content)
        assert told.status.startswith('<div class="vt-problem" role="alert">This picture cannot be used')
        assert "Traceback" not in told.status
    assert service.choose("ada", shown.question.query(), 0).status == ""


def test_what_breaks_inside_is_not_shown_but_logged(service, monkeypatch, caplog):
    service.arrive("ada", "")
    monkeypatch.setattr("vitrail.app.service.draw_classes", lambda asked: 1 / 0)
    told = service.choose("ada", "view=map&example=pair", 0)
    assert SORRY in told.status
    assert "division" not in told.status
    assert "ZeroDivisionError" in caplog.text


def test_two_visitors_have_two_pictures(service, creature):
    one = service.arrive("ada", "example=single")
    two = service.upload("bob", "", "mine.png", base64_of(creature))
    assert service.choose("ada", one.question.query(), 5).views["map"].count("single.png") == 1
    assert service.choose("bob", two.question.query(), 0).views["map"].count("mine.png") == 1


def test_a_link_of_an_upload_waits_for_the_picture_and_then_is_restored(service, creature):
    waiting = service.arrive("ada", "view=map&target=1&against=0&method=gae")
    assert "uploads are not kept" in waiting.status
    shown = service.upload("ada", waiting.question.query(), "mine.png", base64_of(creature))
    assert (shown.question.target, shown.question.against, shown.question.method) == (1, 0, "gae")
    again = service.upload("ada", shown.question.query(), "mine.png", base64_of(creature))
    assert (again.question.target, again.question.against) == (None, None)


def test_models_are_those_that_the_operator_named(service, tmp_path):
    shown = service.arrive("ada", "example=pair&model=timm/vit_base_patch16_224")
    assert "--allow-models" in shown.status
    assert service.arrive("ada", "example=pair&model=bestiary/label-errors").status == ""
    asked = []

    def open_one(name, checkpoint):
        asked.append(name)
        return load("bestiary")

    shelf = Shelf("bestiary", load=open_one, allowed=("timm/one",))
    shelf.model("timm/one")
    for name in ("timm/two", "../weights.pth", "/etc/passwd", "https://example.org/x"):
        with pytest.raises(UnknownModelError, match="--allow-models"):
            shelf.model(name)
    assert asked == ["bestiary", "timm/one"]


def test_work_is_stopped(service):
    query = service.arrive("ada", "example=pair").question.query()
    steps = service.draw("ada", query, {"view": "transfer", "steps": 100})
    next(steps)
    service.stop("ada")
    assert "Stopped" in last(steps).views["transfer"]
    assert service.desks.of("ada").working is None
    with pytest.raises(ImageError, match="draw it first"):
        service.download("ada", read(query).changed(view="transfer").query(), "png")


def test_recipes_run_as_they_are(service, tmp_path, monkeypatch):
    """Copied as Python, a view is the same answer again; the commands name nothing that the commands do not take."""
    import shlex

    from typer.testing import CliRunner

    from vitrail.cli import app

    monkeypatch.chdir(tmp_path)
    shown = service.arrive("ada", "example=pair&target=0&against=8&row=3&col=4")
    namespace = {}
    exec(shown.recipes[0].replace("vitrail.render", "__import__('vitrail.render').render"), namespace)
    assert namespace["ex"].scores.shape == (1, 12, 12)
    draw, command = shown.recipes[1].strip().splitlines()
    exec(shlex.split(draw)[2])
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["readout"] == [3, 4]


def test_mad_changes_change_nothing(service):
    query = service.arrive("ada", "example=pair&target=0").question.query()
    mad = {"target": "x" * 999, "row": [1], "steps": {}, "method": 7, "colour": "red", "__class__": "x", "view": "etc"}
    told = service.change("ada", query, mad)
    assert told.status == ""
    assert told.question == read(query)


def test_desks_are_bounded_by_the_service(creature):
    few = Service(new_service().shelf, desks=Desks(most=2))
    for visitor in ("ada", "bob", "cem"):
        few.upload(visitor, "", "mine.png", base64_of(creature))
    told = few.choose("ada", "view=map", 0)
    assert "Put a picture in first" in told.status


def test_grey_and_tiny_pictures_are_explained_too(service):
    flat = np.full((3, 5), 128, dtype=np.uint8)
    shown = service.upload("ada", "", "flat.png", base64_of(encoded(flat)))
    assert shown.status == ""
    assert "data:image/webp" in shown.views["map"]
