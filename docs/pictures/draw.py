"""Draw the pictures of the README, of creatures and of scikit-image's photographs chelsea and coffee, both CC0.

python docs/pictures/draw.py --checkpoint vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageOps
from skimage import data

import vitrail
from vitrail.bestiary import CLASS_NAMES, render, sample_scene
from vitrail.demo.chapters import chapters
from vitrail.render import save_picture

HERE = Path(__file__).parent


def side_by_side(left: np.ndarray, right: np.ndarray) -> Image.Image:
    """Two photographs in one square picture, each cropped to an upright half."""
    picture = Image.new("RGB", (448, 448))
    for place, pixels in ((0, left), (224, right)):
        picture.paste(ImageOps.fit(Image.fromarray(pixels), (224, 448), Image.Resampling.BICUBIC), (place, 0))
    return picture


def creatures() -> Image.Image:
    """One of each class of the bestiary, in two rows."""
    sheet = Image.new("RGB", (10 * 160, 2 * 160))
    for number, name in enumerate(CLASS_NAMES):
        scene = sample_scene("single", seed=(number, 8), species=name)
        place = (160 * (number // 2), 160 * (number % 2))
        sheet.paste(Image.fromarray(render(scene, 320).image).resize((160, 160), Image.Resampling.LANCZOS), place)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    pair = vitrail.explain(model, side_by_side(data.chelsea(), data.coffee()), [["tabby", "espresso"]])
    save_picture(pair, HERE / "cat-and-coffee.png")
    creatures().save(HERE / "creatures.png", optimize=True)
    bestiary = [vitrail.load(name) for name in ("bestiary", "bestiary/label-errors")]
    with TemporaryDirectory() as folder:
        for _ in chapters(*bestiary, Path(folder)):
            pass
        for name in ("pair.png", "labels-clean.png", "labels-mistaught.png"):
            smaller = Image.open(Path(folder) / name)
            smaller.thumbnail((1600, 1600), Image.Resampling.LANCZOS)
            smaller.save(HERE / f"bestiary-{name}", optimize=True)


if __name__ == "__main__":
    main()
