"""Presets of the paper's downstream tasks, shrunk: ``segment`` and ``detect`` from a run to results and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import hardpatch
from hardpatch.cli import main
from hardpatch.models.transfer import trains_positions
from hardpatch.segment.measure import predict_logits
from hardpatch.train import checkpoint
from hardpatch.train.manifest import MANIFEST
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_detect import data as coco  # noqa: F401
from tests.end_to_end.test_segment import data as pairs  # noqa: F401

MACHINE = ("--workers", "0", "--device", "cpu")
SEGMENT = (
    *("--preset", "hpm", "--steps", "2", "--batch_size", "2", "--crop", "16", "24", "--short_side", "24"),
    *("--stride", "8", "--channels", "8", "--warmup_steps", "1", *MACHINE),
)
DETECT = (
    *("--preset", "hpm", "--epochs", "0.8", "--batch_size", "2", "--image_size", "32", "--window", "3"),
    *("--channels", "8", "--head_width", "16", "--rois", "8", "--global_blocks", "2", *MACHINE),
)
FOUR_BLOCKS = ("--model.depth", "4", "--steps", "1")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Pre-train four blocks for a step."""
    folder = tmp_path_factory.mktemp("runs") / "mae"
    assert main(["pretrain", *SMALL, *FOUR_BLOCKS, "--data", str(images), "--out", str(folder)]) == 0
    return folder


def segment(run: Path, data: Path, out: Path, *options: str) -> int:
    return main(["segment", str(run), "--train", str(data), "--val", str(data), "--out", str(out), *SEGMENT, *options])


def detect(run: Path, data: Path, out: Path, *options: str) -> int:
    names = {"--train": "train", "--annotations": "train.json", "--val": "val", "--val_annotations": "val.json"}
    paths = [word for option, name in names.items() for word in (option, str(data / name))]
    return main(["detect", str(run), *paths, "--out", str(out), *DETECT, *options])


def test_segmentation_with_the_papers_preset(
    encoder: Path,
    pairs: Path,  # noqa: F811
    tmp_path: Path,
    fails: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert segment(encoder, pairs, out) == 0
    log = (out / "log.txt").read_text()
    assert "--lr 0.0001 for an encoder of fewer than 24 blocks" in log
    assert "--blocks 1 2 3 4: maps after these blocks, evenly spread" in log
    assert "--relative_positions" not in log
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["lr"], config["relative_positions"], config["layer_scale"]) == (None, True, True)
    model, _, inference = hardpatch.load_segmenter(out)
    assert (model.encoder.grid, trains_positions(model.encoder)) == ((4, 6), False)  # a loaded one has no gradients
    tables = [name for name, _ in model.named_parameters() if name.endswith("relative_bias.table")]
    assert tables == [f"encoder.blocks.{k}.relative_bias.table" for k in range(4)]
    images = torch.randint(0, 256, (1, 3, 24, 40), dtype=torch.uint8)
    assert predict_logits(model, images, inference).shape == (1, 3, 24, 40)
    # a finished run that is resumed has the same result
    result = json.loads((out / "result.json").read_text())
    assert main(["segment", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "result.json").read_text()) | {"seconds": 0} == result | {"seconds": 0}
    capsys.readouterr()
    # relative positions in each block are those of timm's Beit; torchvision has no class with them
    assert main(["export", str(out), "--to", "timm", "--out", str(tmp_path / "beit.safetensors")]) == 0
    assert 'timm.create_model("beit_base_patch16_224"' in capsys.readouterr().out
    for file in (out, out / "segmenter.safetensors"):
        message = fails("export", file, "--to", "torchvision", "--out", tmp_path / "vit")
        assert "cannot hold a relative position bias" in message
    old = fails("segment", encoder, "--train", pairs, "--val", pairs, "--out", tmp_path / "old", "--preset", "paper")
    assert "--preset: paper is now hpm" in old


def test_detection_with_the_papers_preset(
    encoder: Path,
    coco: Path,  # noqa: F811
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    out = tmp_path / "out"
    assert detect(encoder, coco, out) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["epochs"], config["sampling_ratio"], config["jitter"]) == (0.8, 0, [0.1, 2.0])
    detector = hardpatch.load_detector(out)
    parameters = dict(detector.model.named_parameters())
    assert isinstance(parameters["backbone.encoder.positions"], nn.Parameter)
    assert parameters["backbone.encoder.blocks.3.attn.positions.rows"].shape == (2 * 8 - 1, 16)  # global
    assert parameters["backbone.encoder.blocks.0.attn.positions.rows"].shape == (2 * 3 - 1, 16)  # in windows
    detections = json.loads((out / "detections.json").read_text())
    assert main(["detect", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "detections.json").read_text()) == detections
    assert "take hpm (12 epochs, batch 16) or vitdet" in fails("detect", encoder, "--preset", "paper", "--out", out)


def test_a_bias_from_pre_training_is_kept_and_said(
    images: Path,
    pairs: Path,  # noqa: F811
    coco: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    host = ("--method.host", "simmim", "--model.positions", "relative")
    run = tmp_path / "simmim"
    assert main(["pretrain", *SMALL, *FOUR_BLOCKS, *host, "--data", str(images), "--out", str(run)]) == 0
    line = "--relative_positions: RUN has a relative position bias, shared by its blocks; it is trained on"
    assert segment(run, pairs, tmp_path / "segmenter") == 0
    assert line in (tmp_path / "segmenter" / "log.txt").read_text()
    names = hardpatch.load_segmenter(tmp_path / "segmenter").model.state_dict().keys()
    assert "encoder.relative_bias.table" in names
    assert not any("blocks" in name and "bias.table" in name for name in names)
    assert detect(run, coco, tmp_path / "detector") == 0
    assert line in (tmp_path / "detector" / "log.txt").read_text()
    assert not any(
        "attn.positions" in name for name in hardpatch.load_detector(tmp_path / "detector").model.state_dict()
    )


NEW = ("relative_positions", "layer_scale", "train_positions", "sampling_ratio")
"""Settings that earlier versions did not have."""


def make_old(folder: Path, verb: str) -> None:
    """Change the folder of a run to what a version without these settings wrote."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if k not in NEW}))
    (weights,) = folder.glob(f"checkpoints/*/{checkpoint.WEIGHTS}")
    metadata = checkpoint.read_metadata(weights)
    assert metadata is not None
    metadata[verb] = {k: v for k, v in metadata[verb].items() if k not in NEW}
    metadata.pop("train_positions", None)
    save_file(load_file(weights), weights, {"hardpatch": json.dumps(metadata)})
    (weights.parent / MANIFEST).unlink()  # which that version did not write


def test_runs_of_the_old_preset_load_and_resume(encoder: Path, pairs: Path, coco: Path, tmp_path: Path) -> None:  # noqa: F811
    """As ``paper`` left them: the larger network of its time, without the additions."""
    off = ("--no-relative_positions", "--no-train_positions")
    before = tmp_path / "segmenter"
    assert (
        segment(encoder, pairs, before, *off, "--no-layer_scale", "--blocks", "1", "2", "3", "4", "--lr", "1e-4") == 0
    )
    detector = tmp_path / "detector"
    assert detect(encoder, coco, detector, *off, "--sampling_ratio", "2") == 0
    for verb, folder in (("segment", before), ("detect", detector)):
        result = json.loads((folder / "result.json").read_text())
        make_old(folder, verb)
        assert main([verb, "--resume", "--out", str(folder)]) == 0
        assert json.loads((folder / "result.json").read_text()) | {"seconds": 0} == result | {"seconds": 0}
    heads: Any = hardpatch.load_detector(detector).model
    assert heads.roi_heads.box_roi_pool.sampling_ratio == 2
