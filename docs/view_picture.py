"""Draw view.png: the viewer in Chromium, with a run and a set of images.

python docs/view_picture.py RUN IMAGES...
"""

import sys
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from hardpatch.view.run import open_viewer, serve
from tests.browser import CHROMIUM


def take(address: str) -> None:
    """Write the picture of the page at an address."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 1060})
        page.goto(address)
        page.wait_for_selector(".hp-row img", timeout=60_000)
        page.wait_for_timeout(2000)
        page.screenshot(path=Path(__file__).with_name("view.png"))


def main() -> None:
    """Serve the page until the picture is taken."""
    run, *images = sys.argv[1:]
    taken = threading.Event()

    def started(address: str) -> None:
        take(address)
        taken.set()

    serve(open_viewer([run], images, device="cpu", workers=0), started=started, stop=taken)


if __name__ == "__main__":
    main()
