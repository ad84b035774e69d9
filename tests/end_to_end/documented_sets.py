"""Sets, weights and runs that commands of the documentation name: small, under the names that they have there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from PIL import Image

from hardpatch.cli import main
from tests.end_to_end import test_detect, test_segment
from tests.end_to_end.conftest import SMALL, write_images
from tests.end_to_end.test_help_examples import SHORTER

DEPTH = ("--model.depth", "4", "--model.heads", "2", "--model.patch_size", "4", "--data.image_size", "32")
"""A segmenter has maps after four blocks."""


def make_sets(root: Path) -> None:
    """Write every set that a command of the pages reads, into the folder ``root``."""
    write_images(root / "my_images", each=6)
    for name in ("MY_IMAGES", "IMAGES", "images", "imagenet/train", "imagenet/val", "flowers/train"):
        link(root / name, root / "my_images")
    for name in ("flowers/val", "labeled/train", "labeled/val", "parts/normal"):
        link(root / name, root / "my_images")
    for split in ("train", "test"):
        for number, name in enumerate(("Motorbikes", "watch")):
            link(root / "caltech100_128" / split / name, root / "my_images" / f"class_{number}")
    write_tables(root)
    write_masks(root)
    write_maps(root)
    write_objects(root)
    entry = {"name": "mine", "verb": "knn", "train": "labeled/train", "val": "labeled/val", "k": [3], "workers": 0}
    (root / "suite.yaml").write_text(yaml.safe_dump([entry]))


def link(name: Path, folder: Path) -> None:
    if not name.exists():
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(folder, target_is_directory=True)


def write_tables(root: Path) -> None:
    """Write tables with a label, a fine label, tags and two numbers, and lists with tags and numbers as columns."""
    paths = sorted((root / "my_images").glob("*/*.jpg"))
    labels = [int(path.parent.name[-1]) for path in paths]
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    table = pyarrow.table(
        {"image": images, "label": labels, "fine_label": labels, "tags": [["red", "blue"][: k + 1] for k in labels]}
    )
    sets = ("cifar10/train", "cifar10/test", "tiny_imagenet50/train", "tiny_imagenet50/val")
    for name in ("train", "val", "test", *sets):
        (root / name).parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, root / f"{name}.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"img": images}), root / "cifar100.parquet")
    columns = "path,red,green,blue,area,height"
    lines = [f"{path.relative_to(root)},{k % 2},1,{k % 3 // 2},{k}.5,{k * k}" for k, path in enumerate(paths)]
    for name in ("train", "val"):
        (root / f"{name}.csv").write_text("\n".join([columns, *lines]) + "\n")


def write_masks(root: Path) -> None:
    """Write masks of objects and of defects: each image's own bright pixels."""
    for images, masks in (("my_images", "masks"), ("parts/test", "parts/masks"), ("ecssd200/images", "ecssd200/masks")):
        if not (root / images).exists():
            write_images(root / images, each=4)
        for path in sorted((root / images).glob("*/*.jpg")):
            mask = root / masks / path.relative_to(root / images).with_suffix(".png")
            mask.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.convert("L").point(lambda value: 255 * (value > 120)).save(mask)


def write_maps(root: Path) -> None:
    """Write pairs of images and label maps: folders of both, and ADE20K's layout."""
    maps = test_segment.write_data(root / "camvid")
    link(root / "camvid100", maps)
    (root / "my_maps").mkdir()
    ade = root / "ADEChallengeData2016"
    for split, long in (("train", "training"), ("val", "validation")):
        for kind, name in (("images", "images"), ("labels", "annotations")):
            (ade / name).mkdir(parents=True, exist_ok=True)
            shutil.copytree(maps / kind / split, ade / name / long)
    for path in sorted((root / "my_images").glob("*/*.jpg")):
        target = root / "my_maps" / path.relative_to(root / "my_images").with_suffix(".png")
        target.parent.mkdir(exist_ok=True)
        with Image.open(path) as image:
            image.convert("L").point(lambda value: value // 90).save(target)


def write_objects(root: Path) -> None:
    """Write COCO's layout, and objects on ``my_images``."""
    coco = root / "coco"
    coco.mkdir()
    test_detect.write_data(coco)
    (coco / "annotations").mkdir()
    for split in ("train", "val"):
        (coco / split).rename(coco / f"{split}2017")
        (coco / f"{split}.json").rename(coco / "annotations" / f"instances_{split}2017.json")
    link(root / "coco_mini", coco)
    (root / "objects.json").write_text(json.dumps(bars(root / "my_images")))
    (root / "OBJECTS").mkdir()
    for split in ("train", "val"):
        (root / "OBJECTS" / f"{split}.json").write_text(json.dumps(bars(root / "ecssd200" / "images")))


def bars(folder: Path) -> dict[str, Any]:
    """Return annotations of one object in each image of a folder."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.glob("*/*.jpg"))]
    return {
        "images": [{"id": k, "file_name": name, "height": 40, "width": 48} for k, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [4, 0, 8, 40], "area": 320, "iscrowd": 0}
            for k in range(len(names))
        ],
        "categories": [{"id": 1, "name": "bar"}],
    }


def make_runs(folder: Path) -> None:
    """Train a run and what ``predict`` takes, under ``folder``; the working folder has the sets, and gets a recipe."""
    pretrained = str(folder / "pretrained")
    flowers = ("--train", "flowers/train", "--val", "flowers/val")
    maps = ("--train", "camvid", "--val", "camvid")
    objects = "--train coco/train2017 --annotations coco/annotations/instances_train2017.json"
    objects += " --val coco/val2017 --val_annotations coco/annotations/instances_val2017.json"
    for command in (
        ("pretrain", *SMALL, *DEPTH, "--steps", "2", "--data", "my_images", "--out", pretrained),
        ("finetune", pretrained, *flowers, "--out", str(folder / "classifier"), *SHORTER["finetune"].split()),
        ("segment", pretrained, *maps, "--out", str(folder / "segmenter"), *SHORTER["segment"].split()),
        ("detect", pretrained, *objects.split(), "--out", str(folder / "detector"), *SHORTER["detect"].split()),
        ("export", pretrained, "--to", "timm", "--out", str(folder / "weights")),
    ):
        assert main(list(command)) == 0, command
    shutil.copy(folder / "pretrained" / "config.yaml", "mine.yaml")
