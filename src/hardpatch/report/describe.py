"""Description of a run or a weights file for the terminal."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hardpatch.choices import Architecture, WeightsName
from hardpatch.interchange.foreign import Match, read_matched
from hardpatch.interchange.load import load, read_metadata, read_newest, read_settings
from hardpatch.methods.encoder_only import EncoderOnly
from hardpatch.methods.hpm import HPM
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.pretrain import config
from hardpatch.train.metrics import read_metrics
from hardpatch.weights import described


def describe(run: str | Path, weights: WeightsName = "auto", architecture: Architecture | None = None) -> str:
    """Describe a run in a few lines and by its configuration, and weights of other libraries by their tensors.

    Args:
        run: anything that :func:`hardpatch.load` reads.
        weights: of a file that has several.
        architecture: of weights of other libraries, where they do not say.

    Raises:
        UserError: if there are no weights.
    """

    def read(path: Path) -> tuple[Path, dict[str, Any] | None, HPM, Match | None]:
        metadata = read_metadata(path)
        if metadata is None:
            model, match = read_matched(path, weights, **architecture or {})
            return path, None, model, match
        return path, metadata, load(path, weights), None

    path, metadata, model, match = read_newest(run, read)
    lines = _of_model(path, model)
    folder = Path(run)
    if metadata is not None:
        with described(path):
            epochs = metadata["step"] * metadata["config"]["batch_size"] / metadata["images"]
            state = "done" if metadata["step"] == metadata["steps"] else "not finished"
            lines["trained"] = (
                f"{metadata['step']} of {metadata['steps']} steps ({state}), "
                f"{epochs:.2f} epochs of {metadata['images']} images"
            )
    metrics = read_metrics(folder / "metrics.jsonl") if folder.is_dir() else []
    if metrics:
        hidden = ("step", "epoch", "lr", "momentum")
        shown = (f"{name} {value:.4g}" for name, value in metrics[-1].items() if name not in hidden)
        lines["last metrics"] = ", ".join(shown)
    pictures = sorted(str(p) for p in folder.glob("pictures/**/*.png")) if folder.is_dir() else []
    if pictures:
        lines["pictures"] = ", ".join(pictures[:4]) + (f" and {len(pictures) - 4} more" if len(pictures) > 4 else "")
    text = "".join(f"{name:<15} {value}\n" for name, value in lines.items())
    if metadata is not None:
        text += "\n" + config.to_yaml(read_settings(metadata, path))
    return text + ("" if match is None else _of_tensors(match))


def _of_model(path: Path, model: HPM) -> dict[str, str]:
    encoder = model.host.encoder
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in (("all", model), ("encoder", encoder))}
    rows, columns = model.grid
    variant = ", ".join(f"{name} {value}" for name, value in encoder.variant.changes().items())
    return {
        "weights": str(path),
        "host": "an encoder without decoder" if isinstance(model.host, EncoderOnly) else type(model.host).__name__,
        "encoder": f"{encoder.width} wide, {len(encoder.blocks)} blocks of {encoder_settings(encoder)['heads']} heads, "
        f"{count['encoder'] / 1e6:.1f} M parameters" + (f"; {variant}" if variant else ""),
        "all parts": f"{count['all'] / 1e6:.1f} M parameters",
        "images": f"{model.image_size[0]} x {model.image_size[1]} px, {encoder.channels} channels, "
        f"{rows} x {columns} patches of {model.patch_size} px",
        "normalization": f"mean {_numbers(model.mean)}, std {_numbers(model.std)} of pixels in [0, 1]",
        "loss predictor": "yes" if model.has_predictor else "no (the plain host)",
    }


def _of_tensors(match: Match) -> str:
    """List the tensors of a file by what became of them; those that all blocks have are on one line."""
    text = f"\n{len(match.matched)} tensors matched ({match.names}), every one of the encoder; shapes as in the file:\n"
    text += _listed(match.matched)
    text += f"\n{len(match.left_out)} tensors left out, which are no part of the model\n" + _listed(match.left_out)
    return text


def _listed(tensors: Mapping[str, tuple[int, ...]]) -> str:
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in tensors.items():
        match = re.search(r"(?<=\.)\d+(?=\.)", name)
        found = groups.setdefault((re.sub(r"(?<=\.)\d+(?=\.)", "*", name, count=1), shape), [])
        found += [] if match is None else [int(match[0])]
    lines = []
    for (name, shape), numbers in groups.items():
        several = f"{min(numbers)}-{max(numbers)}" if len(numbers) > 1 else str(*numbers)
        lines.append(f"  {name.replace('*', several)} {list(shape)}\n")
    return "".join(lines)


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())
