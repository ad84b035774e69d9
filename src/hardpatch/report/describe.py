"""Description of a run or a weights file for the terminal."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hardpatch.choices import Architecture, WeightsName
from hardpatch.configuration import config
from hardpatch.interchange.finetuned import VERBS, FineTuned, read_finetuned, read_result
from hardpatch.interchange.foreign import Match, read_foreign
from hardpatch.interchange.load import load, read_metadata, read_newest, read_settings
from hardpatch.methods.encoder_only import EncoderOnly
from hardpatch.methods.hpm import HPM
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.printable import printable
from hardpatch.train.metrics import read_metrics
from hardpatch.weights import described

CLASSES = 20
"""Names of classes that a description lists."""


def describe(run: str | Path, weights: WeightsName = "auto", architecture: Architecture | None = None) -> str:
    """Describe a run in a few lines and by its configuration, and weights of other libraries by their tensors.

    Args:
        run: anything that :func:`hardpatch.load` reads.
        weights: of a file that has several.
        architecture: of weights of other libraries, where they do not say.

    Raises:
        UserError: if there are no weights.
    """

    def read(path: Path) -> tuple[Path, dict[str, Any] | None, FineTuned | None, HPM, Match | None]:
        metadata, finetuned = read_metadata(path), read_finetuned(path)
        if metadata is None and finetuned is None:
            return path, None, None, *read_foreign(path, weights, **architecture or {})
        return path, metadata, finetuned, load(path, weights), None

    path, metadata, finetuned, model, match = read_newest(run, read)
    folder = Path(run)
    lines = {"weights": str(path)} | ({} if finetuned is None else _finetuned_lines(path, finetuned, folder))
    lines |= _of_model(model)
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


def _of_model(model: HPM) -> dict[str, str]:
    encoder = model.host.encoder
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in (("all", model), ("encoder", encoder))}
    rows, columns = model.grid
    variant = ", ".join(f"{name} {value}" for name, value in encoder.variant.changes().items())
    return {
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
        gapless = sorted(numbers) == list(range(min(numbers, default=0), max(numbers, default=-1) + 1))
        several = f"{min(numbers)}-{max(numbers)}" if gapless and len(numbers) > 1 else ",".join(map(str, numbers))
        lines.append(f"  {name.replace('*', several)} {list(shape)}\n")
    return "".join(lines)


def _finetuned_lines(path: Path, found: FineTuned, folder: Path) -> dict[str, str]:
    """Return lines about a fine-tuned network: its kind, its classes, its training, its result."""
    names = ", ".join(map(printable, found.classes[:CLASSES]))
    more = f" and {len(found.classes) - CLASSES} more" if len(found.classes) > CLASSES else ""
    lines = {
        "kind": f"{found.kind}, trained by hardpatch {VERBS[found.kind]}; below is the encoder in it",
        "classes": f"{len(found.classes)}: {names}{more}",
    }
    with described(path):
        step, steps = found.metadata.get("step"), found.metadata.get("steps")
        if step is not None and steps is not None:
            lines["trained"] = f"{step} of {steps} steps ({'done' if step == steps else 'not finished'})"
        if found.prefix == "teacher.":
            lines["average"] = "the moving average of the weights is read"
    result = read_result(folder) if folder.is_dir() else {}
    names_of_numbers = ("top1", "top5", "miou", "pixel_accuracy", "kept")
    shown = [f"{name} {value}" for name in names_of_numbers if (value := _shown(result.get(name))) is not None]
    parts = {kind: result.get(kind) for kind in ("box", "mask")}
    shown += [f"{kind} AP {_shown(part.get('AP')) or '-'}" for kind, part in parts.items() if isinstance(part, dict)]
    return lines | ({"result": ", ".join(shown)} if shown else {})


def _shown(value: object) -> str | None:
    return f"{value:.4f}" if isinstance(value, float) else value if isinstance(value, str) else None


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())
