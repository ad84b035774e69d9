"""hardpatch view, as a browser sees it: sliders move masks, names are text, nothing is fetched from elsewhere."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hardpatch.methods.masking import masked_count
from tests.browser import CHROMIUM, MISSING

NASTY = """<b>"q" & 'é'</b>.jpg""".replace("/", "_")
CPU = ("--device", "cpu", "--workers", "0")
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: hardpatch[view]")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Copy eight images, one of them with a nasty name."""
    folder = tmp_path_factory.mktemp("set")
    for number, file in enumerate(sorted(images.rglob("*.jpg"))[:8]):
        shutil.copy(file, folder / (NASTY if number == 0 else f"{number}.jpg"))
    return folder


@pytest.fixture(scope="module")
def served(run: Path, pictures: Path) -> Iterator[str]:
    """Serve the page of two runs, and yield its address; it ends by Ctrl-C without a complaint."""
    command = [sys.executable, "-m", "hardpatch", "view", run, run, "--set", pictures, *CPU]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found is not None, process.communicate(timeout=60)[1]
    yield found[0]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def counts(page: Any) -> list[str]:
    """Return what stands below the masks."""
    return list(page.locator("figcaption", has_text="patches masked").all_inner_texts())


def move(page: Any, label: str, value: float, text: str) -> None:
    """Set a slider, and wait for a text below the masks."""
    page.get_by_label(f"number input for {label}").fill(str(value))
    page.keyboard.press("Enter")
    page.wait_for_selector(f"figcaption:has-text('{text}')", timeout=30_000)


@needs_gradio
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_browser_moves_the_sliders(served: str, pictures: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, width in (("light", 1280), ("dark", 390)):
            page = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
            )
            page.on("console", lambda message: complaints.extend(_complaints(message)))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: complaints.extend(_outside(request.url, served)))
            page.goto(served)
            page.wait_for_selector(".hp-row img", timeout=60_000)
            patches = int(counts(page)[0].split()[2])
            for ratio, alpha in ((0.9, 0.5), (0.9, 1.0), (0.25, 1.0), (0.25, 0.0)):
                masked = masked_count(patches, ratio)
                expected = f"{masked} of {patches} patches masked, {int(masked * alpha)} of them mined"
                page.get_by_label("number input for Mask ratio (gamma)").fill(str(ratio))
                page.keyboard.press("Enter")
                move(page, "Mined share of the masked patches (alpha)", alpha, expected)
                page.wait_for_function(
                    "expected => [...document.querySelectorAll('figcaption')]"
                    ".filter(one => one.innerText === expected).length === 2",
                    arg=expected,
                )
                assert counts(page) == [expected] * 2
            page.locator("input[type=file]").set_input_files(str(pictures / "5.jpg"))
            page.wait_for_selector("h2:has-text(': 5.jpg')", timeout=60_000)
            page.get_by_label("Image of the set").click()
            page.get_by_role("option", name=NASTY).click()
            page.wait_for_function(
                "name => [...document.querySelectorAll('h2')].some(one => one.innerText.endsWith(name))", arg=NASTY
            )
            assert page.evaluate("[...document.images].every(image => image.alt && image.naturalWidth > 0)")
            assert page.locator("h2 b").count() == 0  # the name is text
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
            page.close()
        browser.close()
    assert complaints == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("{run}", "{run}", "{run}"), "RUN: expected one run or two to compare, got 3"),
        (("{run}", "--port", "0"), "--port: expected"),
        (("{tmp}/none",), "does not exist"),
        (("{run}", "--set", "{tmp}"), "expected"),
    ],
)
@needs_gradio
def test_mistakes_are_one_line(
    options: tuple[str, ...], told: str, run: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    assert told in fails("view", *(word.format(run=run, tmp=tmp_path) for word in options), "--device", "cpu")


def test_without_gradio_the_extra_is_named(
    run: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardpatch.view.run.find_spec", lambda name: None)
    assert "pip install 'hardpatch[view]'" in fails("view", run, "--device", "cpu")


@needs_gradio
def test_a_port_that_is_taken(served: str, run: Path) -> None:
    port = served.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "hardpatch", "view", str(run), "--port", port, *CPU]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"expected a free port, got 127.0.0.1 {port}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def _complaints(message: Any) -> list[str]:
    """Return errors and warnings of the page; gradio's client warns of a method that it lacks, without effect."""
    known = message.text == "Method not implemented."
    return [] if known or message.type not in ("error", "warning") else [f"{message.type}: {message.text}"]


def _outside(address: str, served: str) -> list[str]:
    return [] if address.startswith(("data:", "blob:", served)) else [address]
