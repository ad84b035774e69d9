"""Commands of `torture.py`: a row for each verb and method, with models of seconds on small rendered images."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = 36
"""Images for the verbs that read a folder; other sets are smaller."""
STEPS_OF_A_KILL = 6
EVERY = 3
"""Steps between checkpoints"""

MACHINE = ["--workers", "2", "--device", "cpu"]
PRETRAIN = [
    *("--recipe", "demo", "--batch_size", "12", "--data.workers", "2", "--train.device", "cpu"),
    *("--model.width", "32", "--model.depth", "2", "--model.heads", "2", "--model.decoder_width", "16"),
    *("--model.decoder_depth", "2", "--model.decoder_heads", "2", "--optim.lr", "1e-3", "--method.alpha_start", "0.3"),
    *("--train.log_every", "1", "--data.hold_out", "0"),
]
IBOT = [
    *("--method.host", "ibot", "--method.mask_ratio", "0.3", "--model.positions", "learned"),
    *("--ibot.outputs", "32", "--ibot.head_hidden", "32", "--ibot.head_bottleneck", "16"),
    *("--ibot.local_crops", "2", "--ibot.local_size", "16"),
]
FAST = ["--fast.prediction_ratio", "0.667", "--fast.shared_blocks=-1", "--fast.remember", "true"]
TOKENS = ["--image_size", "16", "--patch_size", "4", "--vocabulary", "16", "--width", "8"]
PIXELS = ["--crop", "16", "24", "--short_side", "24", "--channels", "8", "--warmup_steps", "1", "--stride", "8"]
BOXES = [
    *("--image_size", "32", "--window", "3", "--channels", "8", "--head_width", "16", "--rois", "8"),
    *("--global_blocks", "2"),
]


def encoder_command(data: Path) -> list[str]:
    """Return the command that pre-trains the encoder of the verbs that need one."""
    four = ["--model.depth", "4", "--verdict.checks", "0", "--steps", "2"]
    return ["pretrain", *PRETRAIN, *four, "--data", str(data / "labeled"), "--out", str(data / "encoder")]


def rows(data: Path, kills: int) -> dict[str, list[str]]:
    """Return the command of each row, without ``--out``. A verb that resumes gets ``--resume`` from the second call on.

    Args:
        data: folder of :func:`write_data`.
        kills: kills that the run must be long enough for.
    """
    steps = ["--steps", str(STEPS_OF_A_KILL * kills)]
    labeled, pairs = str(data / "labeled"), str(data / "pairs")
    encoder, evaluation = str(data / "encoder"), ["--val_every", "4"]
    loop = [*steps, *MACHINE, "--log_every", "1", "--checkpoint_steps", str(EVERY)]
    pretrain = ["pretrain", *PRETRAIN, *steps, "--train.checkpoint_steps", str(EVERY), "--data", labeled]
    pretrain += ["--verdict.checks", "0"]
    both = ["--train", labeled, "--val", labeled]
    coco = ["--train", str(data / "coco"), "--annotations", str(data / "coco.json")]
    coco += ["--val", str(data / "coco"), "--val_annotations", str(data / "coco.json")]
    pixels = ["--train", pairs, "--val", pairs, "--classes", "2", "--drop_path", "0.2"]
    pretrained = {
        "pretrain HPM": [*pretrain, "--verdict.checks", "2", "--verdict.images", "8"],
        "pretrain hpm_fast": [*pretrain, *FAST],
        "pretrain iBOT": [*pretrain, *IBOT],
        "pretrain accumulated": [*pretrain, "--optim.accumulation_steps", "3"],
    }
    finetune = ["finetune", encoder, *both, *loop, *evaluation, "--batch_size", "8", "--preset", "tiny"]
    commands = {
        **pretrained,
        "finetune": [*finetune, "--warmup_epochs", "0.5", "--drop_path", "0.2", "--mixup", "0.3", "--ema", "0.9"],
        "segment": ["segment", encoder, *pixels, *loop, *evaluation, *PIXELS, "--batch_size", "4"],
        "detect": ["detect", encoder, *coco, *loop, *evaluation, *BOXES, "--batch_size", "4"],
        "tokenizer": ["tokenizer", "--data", labeled, *loop, *TOKENS, "--batch_size", "12"],
    }
    two = {f"{name} x 2": [*command, *_two(command)] for name, command in commands.items()}
    study = ["study", "table4", "--scale", "micro", "--train.device", "cpu", "--data", labeled, "--val", labeled]
    study += ["--steps", str(2 * kills), "--train.checkpoint_steps", str(EVERY), "--train.log_every", "1"]
    return {**commands, **two, "study": study}


def _two(command: list[str]) -> list[str]:
    return ["--devices", "2", *(["--optim.accumulation_steps", "2"] if "--optim.accumulation_steps" in command else [])]


def write_data(root: Path) -> None:
    """Write ``labeled/``, ``pairs/``, ``coco/`` and ``coco.json``: a bright square on noise, in two classes."""
    rng = np.random.default_rng(0)
    objects, images = [], []
    for folder in ("labeled/left", "labeled/right", "pairs/images", "pairs/labels", "coco"):
        (root / folder).mkdir(parents=True)
    for number in range(IMAGES):
        right = number % 2
        left = int(rng.integers(2, 14)) + 28 * right
        pixels = rng.integers(0, 90, (40, 64, 3), dtype=np.uint8)
        pixels[10:30, left : left + 20] += 150
        image = Image.fromarray(pixels)
        image.save(root / "labeled" / ("left", "right")[right] / f"{number}.jpg", quality=90)
        if number >= 12:
            continue
        labels = np.zeros((40, 64), dtype=np.uint8)
        labels[10:30, left : left + 20] = 1
        image.save(root / "pairs" / "images" / f"{number}.png")
        Image.fromarray(labels).save(root / "pairs" / "labels" / f"{number}.png")
        image.save(root / "coco" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 64})
        corners = [left, 10, left + 20, 10, left + 20, 30, left, 30]
        box = {"bbox": [left, 10, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [corners]}
        objects.append(box | {"id": number + 1, "image_id": number, "category_id": 1})
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "square"}]}
    (root / "coco.json").write_text(json.dumps(content))
