"""Draw verbs.png: what each verb gives, on one sheet.

    python docs/verb_pictures.py FOLDER

FOLDER is that of docs/transcripts.py, with its runs. Texts are the first lines of transcripts.md. Pictures of images
are of photographs that come with scikit-image, in the public domain or CC0, which no run has seen; ``view`` and
``report`` are their own pages' pictures.
"""

import html
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from playwright.sync_api import sync_playwright

import hardpatch
from hardpatch.cli import main as run
from tests.browser import CHROMIUM

DOCS = Path(__file__).parent
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "retina", "rocket")
TEXTURES = ("grass", "gravel", "brick")
MACHINE = {"device": "cpu", "workers": 0}
VERBS = (
    *("pretrain", "plan", "check", "stats", "knn", "linear", "score", "view", "finetune", "segment", "detect"),
    *("predict", "rank", "anomalies", "study", "report", "embed", "export", "info", "evaluate", "recipes"),
    *("tokenizer", "bench", "shard", "shrink", "replay", "formats"),
)
LAST = {"segment": 11, "detect": 8, "evaluate": 8, "stats": 8}
"""Lines from the end that are shown of verbs whose end tells more than their beginning."""
STYLE = """
body { margin: 0; padding: 14px; background: white; font-family: DejaVu Sans, sans-serif; width: 1172px; }
main { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; }
figure { margin: 0; border: 1px solid #d0d4da; border-radius: 6px; overflow: hidden; height: 232px; }
figcaption { font-weight: bold; font-size: 15px; padding: 6px 10px; background: #eef1f5; color: #1d2733; }
img { width: 100%; height: 200px; object-fit: cover; object-position: left top; background: white; }
pre { margin: 0; padding: 8px 10px; font: 11px/1.42 DejaVu Sans Mono, monospace; color: #1d2733; }
pre { white-space: pre-wrap; }
#recipes pre, #formats pre { white-space: pre; }
#predict img { object-fit: contain; }
"""


def write_images(folder: Path) -> None:
    """Write photographs, crops of a texture, and other crops with a patch of another texture in them."""
    for name in ("photographs", "normal", "defects"):
        (folder / name).mkdir()
    for name in PHOTOGRAPHS:
        Image.fromarray(getattr(skimage.data, name)()).save(folder / "photographs" / f"{name}.png")
    grass, gravel = skimage.data.grass(), skimage.data.gravel()
    rng = np.random.default_rng(0)
    for number in range(64):
        top, left = rng.integers(0, 384, 2)
        part = grass[top : top + 128, left : left + 128].copy()
        if number < 8:
            y, x = rng.integers(16, 80, 2)
            part[y : y + 32, x : x + 32] = gravel[y : y + 32, x : x + 32]
        Image.fromarray(part).save(folder / ("defects" if number < 8 else "normal") / f"{number:02}.png")


def draw(runs: Path, folder: Path) -> dict[str, Path]:
    """Run the verbs that draw images, and return the picture of each."""
    mine, photographs = str(runs / "mine"), str(folder / "photographs")
    hardpatch.score(mine, photographs, folder / "scores", **MACHINE)
    hardpatch.rank(mine, photographs, folder / "ranks", **MACHINE)
    hardpatch.anomalies(mine, str(folder / "defects"), folder / "strange", train=str(folder / "normal"), **MACHINE)
    hardpatch.predict(str(runs / "classifier"), photographs, folder / "classes.csv", pictures=5, **MACHINE)
    figure = ["study", "fig2", mine, photographs, "--count", "4", "--out", str(folder / "fig2"), "--device", "cpu"]
    if run(figure):
        raise SystemExit("study fig2 failed")
    return {
        "pretrain": runs / "mine/pictures/curves.png",
        "score": folder / "scores/contact_sheet.png",
        "view": DOCS / "view.png",
        "finetune": runs / "classifier/pictures/curves.png",
        "predict": next((folder / "classes_pictures").glob("*chelsea*")),
        "rank": folder / "ranks/hardest.png",
        "anomalies": folder / "strange/heat_maps.png",
        "study": folder / "fig2/fig2.png",
        "report": DOCS / "report.png",
        "tokenizer": runs / "tokens/pictures/curves.png",
    }


def printed(verb: str) -> str:
    """Return what a verb printed, without the command."""
    page = (DOCS / "transcripts.md").read_text(encoding="utf-8")
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        lines = block.splitlines()
        if any(f"hardpatch {verb} " in f"{line} " for line in lines[:3]):
            while lines[0].startswith(("$", " ")) or "hardpatch" in lines[0]:
                del lines[0]
            shown = [line for line in lines if not line.startswith("[")]
            shown = shown[-LAST[verb] :] if verb in LAST else shown
            return re.sub(r"\n {4,6}(?=\S)", " ", "\n".join(shown))  # as it was before it was wrapped for the page
    raise SystemExit(f"{verb}: transcripts.md has no transcript of it")


def tile(verb: str, picture: Path | None) -> str:
    """Return the tile of a verb as HTML."""
    content = f'<img src="{picture.resolve().as_uri()}">' if picture else f"<pre>{html.escape(printed(verb))}</pre>"
    return f"<figure id={verb}><figcaption>{verb}</figcaption>{content}</figure>"


def main() -> None:
    """Draw the sheet."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        write_images(folder)
        pictures = draw(Path(sys.argv[1]).resolve() / "runs", folder)
        tiles = "".join(tile(verb, pictures.get(verb)) for verb in VERBS)
        (folder / "page.html").write_text(f"<style>{STYLE}</style><main>{tiles}</main>", encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto((folder / "page.html").as_uri())
        page.screenshot(path=folder / "page.png", full_page=True)
        with Image.open(folder / "page.png") as image:  # fewer colors make a third of the bytes
            image.convert("RGB").quantize(192).save(DOCS / "verbs.png", optimize=True)


if __name__ == "__main__":
    main()
