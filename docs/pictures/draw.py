"""Draw the pictures of the README, of creatures and of scikit-image's photographs chelsea and coffee, both CC0.

python docs/pictures/draw.py --checkpoint vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors
python docs/pictures/draw.py --checkpoint … --only compare transfer
"""

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from skimage import data

import vitrail
from vitrail.bestiary import CLASS_NAMES, render, sample_scene
from vitrail.bestiary.benchmark import COMPARED
from vitrail.counterfactual import rewrite, transfer
from vitrail.demo.page import PAIR, SIBLING, SINGLE, chapters
from vitrail.guidance import detail
from vitrail.plotting import draw, draw_transfer
from vitrail.plotting.class_pair import draw_pair
from vitrail.plotting.figure import draw_guided
from vitrail.plotting.rewriting import draw_rewrite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
WIDEST, LARGEST = 1500, 300_000  # pixels and bytes of a picture


def side_by_side(left: np.ndarray, right: np.ndarray) -> Image.Image:
    """Two photographs in one square picture, each cropped to an upright half."""
    picture = Image.new("RGB", (448, 448))
    for place, pixels in ((0, left), (224, right)):
        picture.paste(ImageOps.fit(Image.fromarray(pixels), (224, 448), Image.Resampling.BICUBIC), (place, 0))
    return picture


def square(pixels: np.ndarray) -> Image.Image:
    """The middle of a photograph, 448 pixels a side."""
    return ImageOps.fit(Image.fromarray(pixels), (448, 448), Image.Resampling.BICUBIC)


def keep(figure: "Figure", name: str, widest: int = WIDEST) -> None:
    """Writes a figure as a JPEG that loads quickly: narrower and coarser until it is small enough."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB")
    picture.thumbnail((widest, 4 * widest), Image.Resampling.LANCZOS)
    for quality in range(90 if widest == WIDEST else 82, 40, -5):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
        if file.tell() < LARGEST:
            break
    (HERE / f"{name}.jpg").write_bytes(file.getvalue())


# -- the pictures, by name ---------------------------------------------------------------------------------------------


def creatures(_: vitrail.VisionModel) -> None:
    """One of each class of the bestiary, in two rows."""
    sheet = Image.new("RGB", (10 * 160, 2 * 160))
    for number, name in enumerate(CLASS_NAMES):
        scene = sample_scene("single", seed=(number, 8), species=name)
        place = (160 * (number // 2), 160 * (number % 2))
        sheet.paste(Image.fromarray(render(scene, 320).image).resize((160, 160), Image.Resampling.LANCZOS), place)
    sheet.save(HERE / "creatures.png", optimize=True)


def pair(model: vitrail.VisionModel) -> None:
    """Cat and coffee, asked for both classes, with letters that can be read at the README's width."""
    found = vitrail.explain(model, side_by_side(data.chelsea(), data.coffee()), [["tabby", "espresso"]])
    found.save(HERE / "cat-and-coffee.jpg", side=2.0)


def cards(model: vitrail.VisionModel) -> None:
    """For each method's card the cat and the coffee, asked for both classes."""
    picture = side_by_side(data.chelsea(), data.coffee())
    for info in vitrail.list_methods():
        classes = ["tabby", "espresso"] if info.class_specific else ["tabby"]
        found = vitrail.explain(model, picture, [classes], method=info.name)
        keep(found.plot(side=1.7), f"methods/{info.name}", widest=900)


def bestiary(_: vitrail.VisionModel) -> None:
    """The chapters of the demonstration."""
    models = [vitrail.load(name) for name in ("bestiary", "bestiary/label-errors")]
    with TemporaryDirectory() as folder:
        for _ in chapters(*models, Path(folder)):
            pass
        for name in ("pair.png", "labels-clean.png", "labels-mistaught.png"):
            smaller = Image.open(Path(folder) / name)
            smaller.thumbnail((1600, 1600), Image.Resampling.LANCZOS)
            smaller.save(HERE / f"bestiary-{name}", optimize=True)


def compare(model: vitrail.VisionModel) -> None:
    """The methods of few passes on cat and coffee, the cat's class."""
    keep(vitrail.compare(model, side_by_side(data.chelsea(), data.coffee()), "tabby", methods="all").plot(), "compare")


def compare_classes(model: vitrail.VisionModel) -> None:
    """Four methods, and a row for each class."""
    chosen = "gae,absolute,complete:full,complete"
    found = vitrail.compare(model, side_by_side(data.chelsea(), data.coffee()), ["tabby", "espresso"], methods=chosen)
    keep(found.plot(), "compare-classes")


def compare_bestiary(_: vitrail.VisionModel) -> None:
    """The same of two creatures, asked of the model that knows them."""
    scene = Image.fromarray(render(PAIR, 96).image)
    keep(
        vitrail.compare(vitrail.load("bestiary"), scene, list(PAIR.labels), methods=COMPARED).plot(), "compare-bestiary"
    )


def resolution(model: vitrail.VisionModel) -> None:
    """A creature and a photograph, by patches and by finer cells."""
    scene, photograph = Image.fromarray(render(SINGLE, 96).image), side_by_side(data.chelsea(), data.coffee())
    asked = (
        (vitrail.load("bestiary"), scene, SINGLE.labels[0], "bestiary"),
        (model, photograph, "tabby", "photograph"),
    )
    for one, picture, target, name in asked:
        maps = [vitrail.explain(one, picture, target, resolution=cells) for cells in (1, 2, 4)]
        keep(draw(maps), f"resolution-{name}")


def routes_of_resolution(model: vitrail.VisionModel) -> None:
    """The routes to cells of half a patch, and the controls, on a creature and on a photograph."""
    from benchmarks.resolution import larger_of, routes

    scene, photograph = Image.fromarray(render(SINGLE, 96).image), side_by_side(data.chelsea(), data.coffee())
    rows = []
    for one, picture, target, patch in (
        (vitrail.load("bestiary"), scene, SINGLE.labels[0], 8),
        (model, photograph, "tabby", 16),
    ):
        assert one.preprocess is not None
        ex, images = vitrail.explain(one, picture, target), one.preprocess(picture)[None]
        found = dict(routes(one, larger_of(one), images, int(ex.target), patch, 2))
        rows.append(
            {name: replace(ex, scores=scores[None], rivals=None).overlay(size=300) for name, scores in found.items()}
        )
    names = [name for name in rows[0] if not name.startswith(("nearest", "edges (1)", "within"))]
    sheet = Image.new("RGB", (310 * len(names) - 10, 650), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        pen.text((310 * column, 6), name, fill="black", font=ImageFont.load_default(20))
        for row, pictures in enumerate(rows):
            sheet.paste(pictures[name].convert("RGB").resize((300, 300)), (310 * column, 36 + 310 * row))
    sheet.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    sheet.save(HERE / "resolution-routes.jpg", quality=85)


def pyramids(_: vitrail.VisionModel) -> None:
    """Two creatures, and one on a photograph of a kind that the model has never seen, asked of the bestiary's Swin."""
    swin, methods = vitrail.load("bestiary/swin"), "gradcam,gae,complete"
    scene = Image.fromarray(render(PAIR, 96).image)
    keep(vitrail.compare(swin, scene, list(PAIR.labels), methods=methods).plot(), "compare-swin")
    drawn, photo = render(SINGLE, 96), np.array(square(data.coffee()).resize((96, 96), Image.Resampling.BICUBIC))
    photo[drawn.creatures[0].mask] = drawn.image[drawn.creatures[0].mask]
    found = vitrail.compare(swin, Image.fromarray(photo), SINGLE.labels[0], methods=methods)
    keep(found.plot(), "compare-swin-photo")


def words(_: vitrail.VisionModel) -> None:
    """A map for each content word that the bestiary's captioner writes about two creatures."""
    captioner, scene = vitrail.load_vlm("bestiary/captioner"), Image.fromarray(render(PAIR, 96).image)
    keep(vitrail.explain_generation(captioner, scene, "what is in the picture?").plot(), "words")


def moved(model: vitrail.VisionModel) -> None:
    """Attention transfer from the cat to the coffee."""
    keep(draw_transfer(transfer(model, side_by_side(data.chelsea(), data.coffee()), "tabby", "espresso")), "transfer")


def guided(model: vitrail.VisionModel) -> None:
    """The cat alone, with the coffee as its guide."""
    cat, guide = square(data.chelsea()), vitrail.Guide(square(data.coffee()))
    keep(draw_guided(vitrail.explain(model, cat, guide=guide), vitrail.explain(model, cat, gradient="full")), "guide")


def details(_: vitrail.VisionModel) -> None:
    """A creature against its sibling, every loss both ways."""
    one, other = "tavel", "borrin"
    found = detail(vitrail.load("bestiary"), Image.fromarray(render(SIBLING, 96).image), one, [other])
    keep(draw_pair(found, *found.pairs[0]), "detail")


def rewritten(model: vitrail.VisionModel) -> None:
    """The cat, rewritten into an espresso that nobody sees."""
    keep(draw_rewrite(rewrite(model, square(data.chelsea()), target="espresso", until=0.938)), "rewriting")


PICTURES: dict[str, Callable[[vitrail.VisionModel], None]] = {
    "pair": pair,
    "cards": cards,
    "creatures": creatures,
    "bestiary": bestiary,
    "compare": compare,
    "compare-classes": compare_classes,
    "compare-bestiary": compare_bestiary,
    "resolution": resolution,
    "resolution-routes": routes_of_resolution,
    "pyramids": pyramids,
    "words": words,
    "transfer": moved,
    "guide": guided,
    "detail": details,
    "rewriting": rewritten,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES))
    options = parser.parse_args()
    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    for name in options.only:
        PICTURES[name](model)


if __name__ == "__main__":
    main()
