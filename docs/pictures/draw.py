"""Draw the picture of the README from freely licensed photographs: chelsea and coffee of scikit-image, both CC0.

python docs/pictures/draw.py --checkpoint vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from skimage import data

import vitrail
from vitrail.render import save_picture

HERE = Path(__file__).parent


def side_by_side(left: np.ndarray, right: np.ndarray) -> Image.Image:
    """Two photographs in one square picture, each cropped to an upright half."""
    picture = Image.new("RGB", (448, 448))
    for place, pixels in ((0, left), (224, right)):
        picture.paste(ImageOps.fit(Image.fromarray(pixels), (224, 448), Image.Resampling.BICUBIC), (place, 0))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    pair = vitrail.explain(model, side_by_side(data.chelsea(), data.coffee()), [["tabby", "espresso"]])
    save_picture(pair, HERE / "cat-and-coffee.png")


if __name__ == "__main__":
    main()
