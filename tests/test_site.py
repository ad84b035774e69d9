"""The documentation as a site: every page in it, every link whole, nothing fetched from elsewhere."""

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Elements by which a page loads something, and the attribute with the address."""


class Page(HTMLParser):
    """Addresses that a page loads, and pictures without alternative text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.silent: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect from one element."""
        values = dict(attrs)
        self.loaded += [values[name] or "" for name in [LOADED.get(tag)] if name in values]
        if tag == "img" and not values.get("alt"):
            self.silent.append(values.get("src") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "cache")]  # a broken link is an error
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder / "html")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


def pages(site: Path) -> Iterator[tuple[str, Page]]:
    for path in sorted(site.glob("*.html")):
        yield path.name, Page(path.read_text(encoding="utf-8"))


def test_the_site_needs_no_network(site: Path) -> None:
    names = [name for name, _ in pages(site)]
    assert {f"{path.stem}.html" for path in DOCS.glob("*.md")} <= set(names)
    outside = {name: [link for link in page.loaded if "//" in link] for name, page in pages(site)}
    assert {name: links for name, links in outside.items() if links} == {}
    styles = [path for path in site.rglob("*.css") if "url(http" in path.read_text() or "@import" in path.read_text()]
    assert styles == []


def test_every_picture_has_alternative_text(site: Path) -> None:
    assert {name: page.silent for name, page in pages(site) if page.silent} == {}


def test_functions_are_described_from_their_docstrings(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("pretrain", "finetune", "segment", "detect", "load", "export", "predict", "hard_patches"):
        assert f'<span class="pre">{name}</span>' in text
