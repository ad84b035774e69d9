"""Resuming a classifier, a segmenter or a detector whose images lie elsewhere, or are not the same any more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hardpatch.cli import main
from hardpatch.yaml_text import parse_yaml

SETS = {
    "finetune": ("classifier", ("train", "val")),
    "segment": ("segmenter", ("train", "val")),
    "detect": ("detector", ("train", "val", "annotations", "val_annotations")),
}


def moved(finetuned: Path, verb: str, place: Path) -> tuple[Path, list[str]]:
    """Copy a run and its sets; return the run, and the options that name the sets."""
    name, sets = SETS[verb]
    run = shutil.copytree(finetuned / name, place / "run")
    values = parse_yaml((run / "config.yaml").read_text(), "config.yaml")
    options: list[str] = []
    for number, option in enumerate(sets):
        old = Path(values[option])
        copy = shutil.copytree if old.is_dir() else shutil.copy
        (place / str(number)).mkdir()
        options += [f"--{option}", str(copy(old, place / str(number) / old.name))]
    return run, options


def numbers(run: Path) -> dict[str, Any]:
    """Return what a run's result measures of the images."""
    result = json.loads((run / "result.json").read_text())
    return {name: value for name, value in result.items() if name in ("top1", "miou", "box", "mask", "per_class")}


def blacken(file: Path) -> None:
    """Replace an image by a black one of the same size."""
    with Image.open(file) as image:
        black = Image.new("RGB", image.size)
    black.save(file)


@pytest.mark.parametrize("verb", SETS)
def test_the_same_images_elsewhere(
    finetuned: Path, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, options = moved(finetuned, verb, tmp_path)
    before = numbers(run)
    assert main([verb, "--resume", "--out", str(run), *options]) == 0
    said = capsys.readouterr().err
    assert all(path in said for path in ("changed from step ", *options[1::2]))
    assert "replaced" not in said
    values = parse_yaml((run / "config.yaml").read_text(), "config.yaml")
    assert [values[name] for name in SETS[verb][1]] == options[1::2]
    assert numbers(run) == before


@pytest.mark.parametrize("verb", SETS)
def test_other_images_elsewhere(finetuned: Path, verb: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    run, options = moved(finetuned, verb, tmp_path)
    file = sorted(path for path in Path(options[1]).rglob("*") if path.suffix in (".jpg", ".png"))[0]
    blacken(file)
    config = (run / "config.yaml").read_bytes()
    line = fails(verb, "--resume", "--out", run, *options)
    assert "--train: expected a copy of what the run began with" in line
    assert (run / "config.yaml").read_bytes() == config


def test_an_image_replaced_in_its_place(finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, options = moved(finetuned, "finetune", tmp_path)
    assert main(["finetune", "--resume", "--out", str(run), *options]) == 0
    file = next(Path(options[1]).rglob("*.jpg"))
    blacken(file)
    said = []
    for _ in range(2):
        capsys.readouterr()
        assert main(["finetune", "--resume", "--out", str(run)]) == 0
        said.append("files in --train were replaced since the last call" in capsys.readouterr().err)
    assert said == [True, False]
