"""Draw the pictures of the README: freely licensed photographs only (chelsea and coffee of scikit-image, both CC0).

    python docs/pictures/draw.py --checkpoint vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors
"""

import argparse
from pathlib import Path

from skimage import data

import vitrail
from vitrail.render import save_picture

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    cat, coffee = data.chelsea(), data.coffee()
    detail = vitrail.explain(model, cat, "Egyptian cat", against="tabby", gradient="libra", objective="difference")
    save_picture(detail, HERE / "chelsea-detail.png")
    single = vitrail.explain(model, coffee, "espresso", gradient="libra")
    save_picture(single, HERE / "coffee-espresso.png")


if __name__ == "__main__":
    main()
