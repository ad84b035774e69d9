"""Pages of folders that a test writes: pictures, damage, names, several runs."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardpatch.errors import UserError
from hardpatch.figures import ScoreRow, contact_sheet
from hardpatch.page.charts import HEIGHT, Line, chart
from hardpatch.page.folder import read_run
from hardpatch.page.panels import thinning_line
from hardpatch.page.pictures import strips_of
from hardpatch.page.write import render, write_report
from tests.page.parsed import Parsed, check_page

NASTY = '"><script>alert(1)</script>\x1b[31m\u2028é'
SHOWN = '"><script>alert(1)</script>\\x1b[31m\\u2028é'


def write_run(folder: Path, rows: int = 3, seed: int = 0, **result: object) -> Path:
    folder.mkdir(parents=True)
    lines = [{"step": k, "loss": 1 / k, "knn_top1": None, "lr": float("nan")} for k in range(1, rows + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"verb: finetune\nseed: {seed}\nepochs: 3.0\n")
    (folder / "environment.json").write_text(json.dumps({"command": f"hardpatch finetune {NASTY}", "python": "3.11"}))
    (folder / "result.json").write_text(json.dumps({"verb": "finetune", "top1": 0.123456789 + seed, **result}))
    return folder


def write_sheet(path: Path, shade: int, names: tuple[str, ...]) -> None:
    rng, rows = np.random.default_rng(0), []
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        image = np.full((16, 24, 3), shade + 40 * number, dtype=np.uint8)
        values = rng.random(6).astype(np.float32)
        rows.append(ScoreRow(name, image, values, values > 0.5, image, values, (2, 3)))
    contact_sheet(rows, draws=1).save(path)


def test_names_are_text(tmp_path: Path) -> None:
    classes = [{"name": NASTY, "images": 2, "top1": 0.5}, {"name": "日本", "images": 0, "top1": None}]
    verdict = {"learned": NASTY, "reasons": [NASTY]}
    more: dict[str, Any] = {NASTY: 1.5}
    run = write_run(tmp_path / "\udce9 ü", per_class=classes, verdict=verdict, **more)
    page = check_page(render([read_run(run)]))
    assert page.text.count(SHOWN) >= 5
    assert "\x1b" not in page.text
    assert "日本" in page.texts
    assert "\\udce9 ü" in page.text or "\\xe9 ü" in page.text


def test_numbers_are_exact_and_classes_have_a_table(tmp_path: Path) -> None:
    classes = [{"name": f"class {k}", "images": 3, "top1": k / 7} for k in range(7)]
    page = check_page(render([read_run(write_run(tmp_path / "run", per_class=classes))]))
    assert {repr(0.123456789), *(repr(k / 7) for k in range(7))} <= page.numbers
    assert "0.1235" in page.texts


def test_the_same_images_through_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows=20)
    write_sheet(run / "pictures" / "step_00000000.png", 10, ("a", "b"))
    write_sheet(run / "pictures" / "step_00000010.png", 10, ("b", "a"))
    write_sheet(run / "pictures" / "difficulty" / "contact_sheet.png", 10, ("a", "b"))
    (run / "pictures" / "step_00000015.png").write_bytes(b"no picture")
    files = read_run(run)
    strips = strips_of(files)
    assert [strip.name for strip in strips] == ["a", "b"]
    captions = [caption for caption, _ in strips[0].stages]
    assert captions == ["step 0", "step 10", "step 20, the end"]
    first, _, last = (pictures for _, pictures in strips[0].stages)
    assert first[0].alt == "a, step 0: predicted difficulty"
    assert first[2].uri == last[2].uri != strips[1].stages[0][1][2].uri  # the place follows the name
    assert any("step_00000015.png cannot be shown" in note for note in files.notes)
    assert len(check_page(render([files])).tags("img")) == 2 * (1 + 3 * 3) + 1


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{k}" / "run", seed=k) for k in range(20)]
    page = check_page(render([read_run(run) for run in runs]))
    assert {repr(0.123456789 + k) for k in range(20)} <= page.numbers
    assert "seed" in page.texts
    assert "epochs" not in page.texts  # is the same in all
    assert all(page.texts.count(str(run)) >= 3 for run in runs)  # of the same name, so that the path says which
    assert len([t for t, _ in page.elements if t == "svg"]) == 1


def test_damage_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "result.json").write_text('{"top1": 0.')
    (run / "environment.json").write_text("[1]")
    (run / "config.yaml").write_text("a: [")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.5}\n{"step": 2, "loss": "x", "big": 1e999}\n{"step')
    page = check_page(render([read_run(run)]))
    for line in ("result.json is damaged", "environment.json is damaged", "settings cannot be read", "not finished"):
        assert line in page.text
    assert "1.5" in page.texts


def test_a_path_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "study" / "runs" / "hpm" / "seed_0")
    (tmp_path / "empty").mkdir()
    for name, told in (("none", "does not exist"), ("file", "is a file"), ("empty", "has none of config.yaml")):
        with pytest.raises(UserError, match=told):
            read_run(tmp_path / name)
    with pytest.raises(UserError, match=r"no run, but 1 are inside; name those: .*seed_0"):
        read_run(tmp_path / "study")


def test_thinning_is_said_and_keeps_the_extremes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows=5000)
    text = render([read_run(run)])
    assert "Curves are thinned: of up to 5,000 points" in check_page(text).text
    assert len(text.encode()) < 60_000
    assert thinning_line([read_run(write_run(tmp_path / "short"))]) == ""


def test_a_chart_has_the_colors_of_the_page_and_its_lines_have_names() -> None:
    svg = chart([Line("<a>", ([0, 1], [0.0, 1.0]), 0), Line("b", ([0, 1], [1.0, 0.0]), 7)], 'a "label"', "k")
    page = Parsed(svg)
    assert page.tags("svg") == [{"viewbox": f"0 0 340 {HEIGHT:g}", "role": "img", "aria-label": 'a "label"'}]
    assert {"<a>", "b"} <= set(page.texts)
    assert "var(--c0)" in svg
    assert "var(--c1)" in svg
    assert "#0a0b" not in svg
    assert "stroke-dasharray" in svg


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "page.html"
    out.write_text("old")
    assert write_report([run], out).bytes == out.stat().st_size
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    blocked = tmp_path / "blocked.html"
    (blocked / "x").mkdir(parents=True)
    with pytest.raises(OSError, match=os.strerror(21)):
        write_report([run], blocked)
