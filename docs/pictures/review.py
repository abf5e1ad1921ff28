"""Take the pictures of an audit's review page, on creatures of the bestiary, into docs/pictures/app.

The model is the one that learnt wrong labels; of the pictures it is asked about, an eighth lie in a sibling's folder.

python docs/pictures/review.py
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from app import keep, serving
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import vitrail
from vitrail.app.review import Review
from vitrail.app.review_server import review_application
from vitrail.audit import Audit
from vitrail.audit.decisions import reviewing
from vitrail.bestiary import CLASS_NAMES, render, sample_scene
from vitrail.bestiary.species import siblings

EACH, SIDE = 16, 320  # pictures of each species, and their pixels


def audited(folder: Path) -> Audit:
    """The audit of a folder of creatures in which some lie in the folder of another species."""
    for number in range(EACH * len(CLASS_NAMES)):
        species = CLASS_NAMES[number % len(CLASS_NAMES)]
        wrong = number % 8 == 5
        named = siblings(species)[0] if wrong else species
        (folder / "pictures" / named).mkdir(parents=True, exist_ok=True)
        scene = render(sample_scene("single", seed=300 + number, species=species), SIDE)
        Image.fromarray(scene.image).save(folder / "pictures" / named / f"creature-{number:03}.png")
    model = vitrail.load("bestiary/label-errors")
    return vitrail.audit(model, folder / "pictures", output=folder / "audit", pairs=12, pair_images=EACH)


def shown(page: Page) -> None:
    page.locator(".rv-contrast img").last.wait_for()
    page.wait_for_timeout(800)


def pairs(page: Page) -> None:
    page.get_by_role("tab", name="Class pairs").click()
    page.locator("tr[data-pair] button").first.click()
    page.locator(".rv-grid figure").first.wait_for()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        audit = audited(Path(made))
        with reviewing(audit) as decisions, serving(review_application(Review(audit, decisions))) as address:
            browser = playwright.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox"])
            for name in ("review", "review-phone", "review-pairs"):
                look: Any = {"viewport": {"width": 1280, "height": 800}}
                if name == "review-phone":
                    look = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
                page = browser.new_page(**look)
                page.set_default_timeout(60_000)
                page.goto(address)
                shown(page)
                if name == "review":
                    for key in "rrkrdrrbrs":
                        page.keyboard.press(key)
                        shown(page)
                    while not page.locator("[data-row=given] img").count():  # in doubt is all that is labelled so
                        page.keyboard.press("ArrowRight")
                        shown(page)
                elif name == "review-pairs":
                    pairs(page)
                keep(page, name, whole=name == "review-pairs")
                page.close()
            browser.close()


if __name__ == "__main__":
    main()
