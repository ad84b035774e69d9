"""The Python of the documentation runs as it is printed there, with a small model and for a few steps."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import hardpatch
from hardpatch.cli import main
from hardpatch.pretrain.plan import Plan
from tests.documented import python_blocks
from tests.end_to_end.conftest import SMALL, write_images
from tests.end_to_end.test_help_examples import SHORTER

MODEL = ("--recipe", "demo", "--model.depth", "2", "--model.heads", "4", "--model.patch_size", "4")
SHORT: dict[str, dict[str, Any]] = {
    "plan": {"train.device": "cpu", "model.width": 32, "model.depth": 2, "model.heads": 2},
    "pretrain": {"train.pictures": 0, "train.report": "no", "verdict.checks": 0, "train.device": "cpu"},
    "finetune": {"device": "cpu", "workers": 0, "epochs": 1, "warmup_epochs": 0, "batch_size": 8},
    "knn": {"device": "cpu", "workers": 0},
}
"""Settings that every call of a function gets on top of those that are printed, so that it ends in seconds."""
SMALLER = {
    "hours=2": "hours=0.001",
    "imagenet_base_200": "demo",
    "vit_base_patch16_224": "vit_tiny_patch16_224",
}
"""What is replaced in the text: models of 86 M parameters, and trainings of two hours."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make the sets, runs and exports that the pages name, in a folder of their own, and go there."""
    from tests.end_to_end import test_detect, test_segment  # which import the same files as this one

    root, before = tmp_path_factory.mktemp("python"), Path.cwd()
    os.chdir(root)
    write_images(Path("my_images"), each=6)
    for name in ("labeled", "imagenet", "flowers"):
        for split in ("train", "val"):
            write_images(Path(name) / split, each=6)
    shutil.copy("my_images/class_0/0.jpg", "a.jpg")
    Image.open("my_images/class_1/0.jpg").save("b.png")
    Path("coco").mkdir()
    coco = [f"coco/{name}" for name in ("train", "val")]
    test_detect.write_data(Path("coco"))
    maps = test_segment.write_data(Path("maps"))
    small = [*SMALL, *MODEL, "--steps", "2", "--data", "my_images"]
    run(["pretrain", *small, "--out", "runs/mine"])
    run(["pretrain", *small, "--model.depth", "4", "--out", "runs/deep"])  # a segmenter has maps after four blocks
    shutil.copytree("runs/mine", "runs/hpm")
    labeled = ["--train", "labeled/train", "--val", "labeled/val"]
    run(["finetune", "runs/mine", *labeled, "--out", "runs/classifier", *SHORTER["finetune"].split()])
    run(test_segment.command(Path("runs/deep"), maps, Path("runs/camvid")))
    run(test_detect.command(Path("runs/deep"), Path("coco"), Path("runs/detector"), *SHORTER["detect"].split()))
    run(["predict", "runs/detector", coco[1], "--out", "objects.json", "--device", "cpu"])
    shutil.copy("coco/val.json", "my_annotations.json")
    for form, out in (("timm", "vit"), ("hf", "hf"), ("hf-mae", "hf-mae"), ("torchvision", "torchvision")):
        run(["export", "runs/mine", "--to", form, "--out", out])
    run(["export", "runs/mine", "--to", "onnx", "--part", "encoder", "--out", "vit.onnx"])
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), "vit.safetensors")
    yield root
    os.chdir(before)


def run(arguments: list[str]) -> None:
    assert main(arguments) == 0, arguments


def names(page: str) -> dict[str, Any]:
    """Return what the reader of a page has: images and a mask."""
    with Image.open("a.jpg") as file:
        picture = file.convert("RGB").resize((32, 32))
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).repeat(2, 1, 1, 1)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, ::2] = True
    images: Any = pixels
    if page == "detection.md":
        images = list(pixels)
    elif page == "export.md":  # normalized, as an encoder in ONNX takes them
        images = pixels / 255
    return {"images": images, "pixels": pixels, "mask": mask, "image": picture, "picture": picture}


def shortened(function: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """Return a function that also gets settings that make it short, unless it gets a plan, which has all settings."""

    def called(*inputs: Any, **options: Any) -> Any:
        whole = isinstance(inputs[0] if inputs else None, Plan)
        return function(*inputs, **options if whole else settings | options)

    return called


@pytest.mark.parametrize("page", sorted({page for page, _ in python_blocks()}))
def test_python_runs(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, settings in SHORT.items():
        monkeypatch.setattr(hardpatch, name, shortened(getattr(hardpatch, name), settings))
    shutil.rmtree("runs/flowers", ignore_errors=True)
    namespace = names(page)
    for block in (block for name, block in python_blocks() if name == page):
        for printed, smaller in SMALLER.items():
            block = block.replace(printed, smaller)
        kind = "hf-mae" if "MAE" in block else "hf" if "transformers" in block else "torchvision"
        block = block.replace("FOLDER", kind)
        for out in ("mine", "classifier"):  # what a block makes itself is not there yet
            if f'out="runs/{out}"' in block or f'"labeled/val", "runs/{out}")' in block:
                block = block.replace(f"runs/{out}", f"runs/{out}_of_{page}")
        exec(compile(block, page, "exec"), namespace)
