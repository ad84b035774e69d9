"""`hardpatch bench`."""

import importlib.util
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from hardpatch.bench.timing import quartiles
from hardpatch.cli import main

TINY = [
    *("--image_size", "16", "--decoder_width", "16", "--decoder_depth", "2", "--decoder_heads", "2"),
    *("--model.width", "32", "--model.depth", "2", "--model.heads", "2", "--batch_size", "4", "--device", "cpu"),
]


def test_all_contenders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = "hpm,mae,transformers,lightly,literal"
    arguments = ["bench", *TINY, "--contenders", names, "--repeats", "2", "--json", str(tmp_path / "bench.json")]
    assert main(arguments) == 0
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    rows = {row["name"]: row for row in written["contenders"]}
    assert list(rows) == names.split(",")
    assert written["run"]["model"]["decoder_width"] == 16
    for name, row in rows.items():
        assert f"| {name} | " in printed
        if importlib.util.find_spec(name) is None and name in ("transformers", "lightly"):
            assert row["missing"] == f"not installed ({name}): pip install 'hardpatch[bench]'"
            continue
        assert row["missing"] is None
        assert len(row["seconds"]) == 2
        assert 0.0 < row["matrix_product_share"][1] < 1.0
        median = quartiles(row["seconds"]).median
        assert row["images_per_second"] == pytest.approx(4 / median)
        if name != "mae":
            ratios = [other / own for other, own in zip(rows["mae"]["seconds"], row["seconds"], strict=True)]
            assert row["speedup"]["mae"] == pytest.approx(quartiles(ratios))
    assert sum(rows["hpm"]["flops"].values()) > 2 * sum(rows["mae"]["flops"].values())


def test_other_hosts_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    ibot = ["--method.host", "ibot", "--ibot.local_size", "8", "--ibot.outputs", "16", "--precision", "bf16"]
    assert main(["bench", "--recipe", "demo", *TINY, *ibot, "--contenders", "hpm,mae,lightly", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "| hpm | " in printed
    assert "| ibot | " in printed
    assert "| lightly | supports MAE on square images only |" in printed
    assert "GFLOP" not in printed  # counted for host mae only


def test_a_recipe_contributes_its_fast_section_and_not_its_sizes(tmp_path: Path) -> None:
    cheap = ["--fast.decoder", "cross"]
    arguments = ["--contenders", "hpm,mae,demo", *cheap, "--repeats", "1", "--json", str(tmp_path / "bench.json")]
    assert main(["bench", *TINY, *arguments]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench.json").read_text())["contenders"]}
    flops = {name: sum(row["flops"].values()) for name, row in rows.items()}
    assert flops["hpm"] < flops["demo"]  # the recipe has no section fast: this is the exact step
    assert flops["mae"] == sum(rows["demo"]["flops"][part] for part in rows["mae"]["flops"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--contenders", "hpn"], "--contenders: hpn is none of hpm, mae, hpm_fast, transformers, lightly, literal"),
        (["--contenders", "hpm,mae", "--base", "maes"], "--base: expected names from --contenders hpm,mae, got maes"),
        (["--contenders", "hpm,hpm"], "--contenders: expected each name once, got hpm,hpm"),
        (["--contenders", "hpm", "--model.widht", "3"], "--model.widht: unknown argument; did you mean"),
        (["--repeats", "0"], "argument --repeats: expected a whole number from 1, got 0"),
        (
            ["--contenders", "hpm", "--patch_size", "5"],
            "data.image_size, model.patch_size: expected a divisor of the image size 16x16, got 5",
        ),
    ],
)
def test_mistakes(fails: Callable[..., str], arguments: list[str], line: str) -> None:
    assert fails("bench", *TINY, *arguments).startswith(f"hardpatch bench: {line}")


def test_contenders_in_separate_processes(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    assert (
        main(["bench", *TINY, "--contenders", "literal", "--repeats", "1", "--separate_processes", "--json", str(file)])
        == 0
    )
    (row,) = json.loads(file.read_text())["contenders"]
    assert row["missing"] is None
    assert len(row["seconds"]) == 1
    assert multiprocessing.active_children() == []
