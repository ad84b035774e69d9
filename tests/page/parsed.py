"""A page as html.parser sees it, and what every page has to be."""

import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "img", "br", "link", "input"}
ADDRESSES = ("src", "href", "action", "data", "poster", "srcset", "xlink:href", "xmlns", "xmlns:xlink")


class Parsed(HTMLParser):
    """Elements, texts and numbers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.numbers: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "data":
            self.numbers.add(dict(attrs)["value"] or "")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def tags(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def check_page(text: str) -> Parsed:
    """Check what holds for every page: no outside address, no program, headings in order, texts beside pictures."""
    page = Parsed(text)
    values = [(name, value) for _, attributes in page.elements for name, value in attributes.items()]
    outside = [(name, value) for name, value in values if name in ADDRESSES and not value.startswith(("#", "data:"))]
    assert outside == []
    assert re.search(r"url\(|@import|//", page_style(page, text)) is None
    assert not any(name.startswith("on") for name, _ in values)
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.elements}
    (policy,) = [meta["content"] for meta in page.tags("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(image["alt"].strip() for image in page.tags("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.tags("svg"))
    assert len(page.tags("caption")) == len(page.tags("table"))
    assert all(header["scope"] in ("col", "row") for header in page.tags("th"))
    idents = [value for name, value in values if name == "id"]
    assert len(idents) == len(set(idents))
    links = [link["href"].removeprefix("#") for tag, link in page.elements if link.get("href", "").startswith("#")]
    assert set(links) <= set(idents)
    return page


def page_style(page: Parsed, text: str) -> str:
    """Return the style sheet of a page."""
    return text[text.index("<style>") : text.index("</style>")] + "".join(e.get("style", "") for _, e in page.elements)
