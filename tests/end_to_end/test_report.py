"""hardpatch report: from real runs of all four verbs to pages without network."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hardpatch.cli import main
from tests.browser import CHROMIUM, MISSING
from tests.page.parsed import check_page
from tests.page.test_page import NASTY, SHOWN


def numbers_in(value: Any) -> Iterator[str]:
    """Yield all floating-point numbers of a result as Python writes them."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(item)
    elif isinstance(value, float):
        yield repr(value)


@pytest.mark.parametrize(("name", "key"), [("classifier", "top1"), ("segmenter", "miou"), ("detector", "box")])
def test_a_training_on_labels_leaves_a_page_with_its_exact_numbers(finetuned: Path, name: str, key: str) -> None:
    page = check_page((finetuned / name / "report.html").read_text(encoding="utf-8"))
    result = json.loads((finetuned / name / "result.json").read_text())
    told = {key: result[key]} | {"per_class": result.get("per_class")}
    assert set(numbers_in(told)) <= page.numbers
    assert page.tags("img")
    assert "Settings that differ from preset" in page.text
    assert "not finished" not in page.text


def test_a_pre_training_leaves_a_page(run: Path) -> None:
    page = check_page((run / "report.html").read_text(encoding="utf-8"))
    result = json.loads((run / "result.json").read_text())
    assert set(numbers_in(result["metrics"])) - {repr(result["metrics"]["epoch"])} <= page.numbers
    assert "Settings that differ from recipe demo" in page.text
    assert "Share of hard patches (alpha)" in page.texts
    assert json.loads((run / "environment.json").read_text())["command"] in page.text


def test_runs_of_several_verbs_and_of_any_name_on_one_page(
    finetuned: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    nasty, out = tmp_path / NASTY.replace("/", "_"), tmp_path / "page.html"
    shutil.copytree(finetuned / "classifier", nasty, ignore=shutil.ignore_patterns("checkpoints", "features"))
    command = ["report", str(run), str(nasty), str(finetuned / "detector"), "--out", str(out)]
    assert main(command) == 0
    assert f"{out}: 3 runs, " in capsys.readouterr().out
    page = check_page(out.read_text(encoding="utf-8"))
    assert SHOWN.replace("/", "_") in page.texts
    assert {"Settings that differ, a column for each run", "lr", "not a setting"} <= set(page.texts)
    assert "method.alpha_start" not in page.texts  # only one of the runs has it
    assert "exists and is never overwritten" in fails(*command)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}", "--out", "{tmp}/page.pdf"], "expected a file that ends in .html"),
        (["{run}", "--out", "{tmp}/none/page.html"], "is none"),
        (["{run}", "{run}", "--out", "{tmp}/page.html"], "is named twice"),
        (["{tmp}/none", "--out", "{tmp}/page.html"], "does not exist"),
        (["{run}/..", "--out", "{tmp}/page.html"], "no run, but 1 are inside"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, tmp_path: Path, fails: Callable[..., str], arguments: list[str], told: str
) -> None:
    assert told in fails("report", *(text.format(run=run, tmp=tmp_path) for text in arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_ends_no_training(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "report.html").unlink()
    assert main(["pretrain", "--resume", "--out", str(folder), "--train.report", "no"]) == 0
    assert not (folder / "report.html").exists()
    (folder / "report.html" / "x").mkdir(parents=True)
    capfd.readouterr()
    assert main(["pretrain", "--resume", "--out", str(folder), "--train.report", "end"]) == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "cannot write" in line]
    assert "report.html: IsADirectoryError" in line
    assert "the run goes on without it" in line


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_browser_opens_the_pages_without_complaint(finetuned: Path, run: Path, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    several = tmp_path / "several.html"
    assert main(["report", str(run), str(finetuned / "classifier"), "--out", str(several)]) == 0
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, width in (("light", 1280), ("dark", 390)):
            context = browser.new_context(
                viewport={"width": width, "height": 800},
                color_scheme="dark" if scheme == "dark" else "light",
                bypass_csp=False,
            )
            for path in (run / "report.html", finetuned / "segmenter" / "report.html", several):
                page = context.new_page()
                page.on("console", lambda message: complaints.append(message.text))
                page.on("pageerror", lambda error: complaints.append(str(error)))
                page.on("request", lambda request: complaints.extend(_outside(request.url)))
                page.goto(path.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
                found = Axe().run(page)
                assert found.violations_count == 0, found.generate_report()
                page.close()
        browser.close()
    assert complaints == []


def _outside(address: str) -> list[str]:
    return [] if address.startswith(("data:", "file:")) else [address]
