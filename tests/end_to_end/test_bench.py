"""`hardpatch bench`."""

import importlib.util
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from hardpatch.bench.timing import spread
from hardpatch.cli import main

TINY = [
    *("--image_size", "16", "--decoder_width", "16", "--decoder_depth", "2", "--decoder_heads", "2"),
    *("--model.width", "32", "--model.depth", "2", "--model.heads", "2", "--batch_size", "4", "--device", "cpu"),
]


def test_all_contenders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = "hpm,mae,transformers,lightly,literal"
    arguments = ["bench", *TINY, "--contenders", names, "--repeats", "2", "--json", str(tmp_path / "bench.json")]
    assert main(arguments) == 0
    told, wrote = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    rows = {row["name"]: row for row in wrote["contenders"]}
    assert list(rows) == names.split(",")
    assert wrote["run"]["model"]["decoder_width"] == 16
    for name, row in rows.items():
        assert f"| {name} | " in told
        if importlib.util.find_spec(name) is None and name in ("transformers", "lightly"):
            assert row["missing"] == f"not installed ({name}): pip install 'hardpatch[bench]'"
            continue
        assert row["missing"] is None
        assert len(row["seconds"]) == 2
        assert 0.0 < row["share_of_product"][1] < 1.0
        middle = spread(row["seconds"]).middle
        assert row["images_per_second"] == pytest.approx(4 / middle)
        if name != "mae":
            ratios = [theirs / ours for theirs, ours in zip(rows["mae"]["seconds"], row["seconds"], strict=True)]
            assert row["times_as_fast"]["mae"] == pytest.approx(spread(ratios))
    assert sum(rows["hpm"]["flops"].values()) > 2 * sum(rows["mae"]["flops"].values())


def test_other_hosts_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--method.host", "ibot", "--ibot.local_size", "8", "--ibot.outputs", "16", "--precision", "bf16"]
    assert main(["bench", "--recipe", "demo", *TINY, *more, "--contenders", "hpm,mae,lightly", "--repeats", "1"]) == 0
    told = capsys.readouterr().out
    assert "| hpm | " in told
    assert "| ibot | " in told
    assert "| lightly | knows MAE on square images only |" in told
    assert "GFLOP" not in told  # which are counted for MAE alone


def test_a_recipe_brings_its_price_and_not_its_size(tmp_path: Path) -> None:
    cheap = ["--fast.decoder", "cross", "--fast.teacher_every", "2"]
    arguments = ["--contenders", "hpm,mae,demo", *cheap, "--repeats", "1", "--json", str(tmp_path / "bench.json")]
    assert main(["bench", *TINY, *arguments]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench.json").read_text())["contenders"]}
    flops = {name: sum(row["flops"].values()) for name, row in rows.items()}
    assert flops["hpm"] < flops["demo"]  # the recipe has no such settings: it is the exact step, at these sizes
    assert flops["mae"] == sum(rows["demo"]["flops"][part] for part in rows["mae"]["flops"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--contenders", "hpn"], "--contenders: hpn is none of hpm, mae, hpm_fast, transformers, lightly, literal"),
        (["--contenders", "hpm,mae", "--base", "maes"], "--base: expected some of --contenders hpm,mae, got maes"),
        (["--contenders", "hpm,hpm"], "--contenders: expected each once, got hpm,hpm"),
        (["--contenders", "hpm", "--model.widht", "3"], "--model.widht: unknown argument; did you mean"),
        (["--repeats", "0"], "argument --repeats: expected a whole number from 1, got 0"),
        (["--contenders", "hpm", "--patch_size", "5"], "patch_size: expected a divisor of the image size"),
    ],
)
def test_mistakes(fails: Callable[..., str], arguments: list[str], line: str) -> None:
    assert fails("bench", *TINY, *arguments).startswith(f"hardpatch bench: {line}")


def test_contenders_in_processes_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", *TINY, "--contenders", "literal", "--repeats", "1", "--apart", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["contenders"]
    assert row["missing"] is None
    assert len(row["seconds"]) == 1
    assert multiprocessing.active_children() == []
