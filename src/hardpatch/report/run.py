"""What a run shows of itself: pictures in its folder, a description on the terminal."""

import logging
from pathlib import Path

from torch import Tensor

from hardpatch.curves import training_curves
from hardpatch.data.sources import Subset, open_source
from hardpatch.errors import UserError
from hardpatch.interchange.load import load, load_pair, load_target, read_metadata, training_masks, weights_file
from hardpatch.measure.difficulty import score
from hardpatch.pretrain import config
from hardpatch.pretrain.folder import read_config
from hardpatch.train.metrics import read_metrics

log = logging.getLogger("hardpatch")

PICTURED = 8
"""Images of the training set whose difficulty is shown at the end of a run."""


def write_pictures(folder: Path) -> list[Path]:
    """Draw the curves of a finished run and, where it has a loss predictor, what it finds hard.

    Returns:
        The pictures: ``pictures/curves.png`` and ``pictures/difficulty/contact_sheet.png``.
    """
    pictures = []
    metrics = read_metrics(folder / "metrics.jsonl")
    if metrics:
        pictures.append(training_curves(metrics, folder / "pictures" / "curves.png"))
    student, teacher = load_pair(folder)
    if student.has_predictor:
        source, (ratio, mined_by) = open_source(read_config(folder).data.path), training_masks(folder)
        chosen = sorted({round(k * (len(source) - 1) / (PICTURED - 1)) for k in range(PICTURED)})
        out = folder / "pictures" / "difficulty"
        try:
            target = load_target(folder, teacher)
            summary = score(
                student,
                teacher,
                Subset(source, chosen),
                out=out,
                target=target,
                mask_ratio=ratio,
                predict=mined_by,
                pictures=PICTURED,
            )
        except UserError as error:  # too few patches for a picture is no reason to call a finished run failed
            log.warning("no pictures of the difficulty: %s", error)
        else:
            pictures += [summary.contact_sheet] if summary.contact_sheet is not None else []
    return pictures


def describe(run: str | Path) -> str:
    """A run or weights file in a few lines, ready to print.

    Raises:
        UserError: if there is nothing to describe.
    """
    path = weights_file(run)
    metadata = read_metadata(path)
    model = load(path)
    encoder = model.host.encoder
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in (("all", model), ("encoder", encoder))}
    rows, columns = model.grid
    lines = {
        "weights": str(path),
        "host": type(model.host).__name__,
        "encoder": f"{encoder.width} wide, {len(encoder.blocks)} blocks, {count['encoder'] / 1e6:.1f} M parameters",
        "all parts": f"{count['all'] / 1e6:.1f} M parameters",
        "images": f"{model.image_size[0]} x {model.image_size[1]} px, {encoder.channels} channels, "
        f"{rows} x {columns} patches of {model.patch_size} px",
        "normalization": f"mean {_numbers(model.mean)}, std {_numbers(model.std)} of pixels in [0, 1]",
        "loss predictor": "yes" if model.has_predictor else "no (the plain host)",
    }
    if metadata is not None:
        epochs = metadata["step"] * metadata["config"]["batch_size"] / metadata["images"]
        state = "done" if metadata["step"] == metadata["steps"] else "not finished"
        lines["trained"] = (
            f"{metadata['step']} of {metadata['steps']} steps ({state}), "
            f"{epochs:.2f} epochs of {metadata['images']} images"
        )
    folder = Path(run)
    metrics = read_metrics(folder / "metrics.jsonl") if folder.is_dir() else []
    if metrics:
        told = {name: value for name, value in metrics[-1].items() if name not in ("step", "epoch", "lr", "momentum")}
        lines["last metrics"] = ", ".join(f"{name} {value:.4g}" for name, value in told.items())
    pictures = sorted(str(p) for p in folder.glob("pictures/**/*.png")) if folder.is_dir() else []
    if pictures:
        lines["pictures"] = ", ".join(pictures[:4]) + (f" and {len(pictures) - 4} more" if len(pictures) > 4 else "")
    text = "".join(f"{name:<15} {value}\n" for name, value in lines.items())
    if metadata is not None:
        text += "\n" + config.to_yaml(config.build(metadata["config"]))
    return text


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())
