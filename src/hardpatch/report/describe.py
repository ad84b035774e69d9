"""Description of a run or a weights file for the terminal."""

from pathlib import Path

from torch import Tensor

from hardpatch.interchange.load import load, read_metadata, read_newest, read_settings
from hardpatch.methods.encoder_only import EncoderOnly
from hardpatch.pretrain import config
from hardpatch.train.metrics import read_metrics
from hardpatch.weights import described


def describe(run: str | Path) -> str:
    """Describe a run or weights file in a few lines, and by its configuration.

    Raises:
        UserError: if there are no weights.
    """
    path, metadata, model = read_newest(run, lambda path: (path, read_metadata(path), load(path)))
    encoder = model.host.encoder
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in (("all", model), ("encoder", encoder))}
    rows, columns = model.grid
    lines = {
        "weights": str(path),
        "host": "an encoder without decoder" if isinstance(model.host, EncoderOnly) else type(model.host).__name__,
        "encoder": f"{encoder.width} wide, {len(encoder.blocks)} blocks, {count['encoder'] / 1e6:.1f} M parameters",
        "all parts": f"{count['all'] / 1e6:.1f} M parameters",
        "images": f"{model.image_size[0]} x {model.image_size[1]} px, {encoder.channels} channels, "
        f"{rows} x {columns} patches of {model.patch_size} px",
        "normalization": f"mean {_numbers(model.mean)}, std {_numbers(model.std)} of pixels in [0, 1]",
        "loss predictor": "yes" if model.has_predictor else "no (the plain host)",
    }
    if metadata is not None:
        with described(path):
            epochs = metadata["step"] * metadata["config"]["batch_size"] / metadata["images"]
            state = "done" if metadata["step"] == metadata["steps"] else "not finished"
            lines["trained"] = (
                f"{metadata['step']} of {metadata['steps']} steps ({state}), "
                f"{epochs:.2f} epochs of {metadata['images']} images"
            )
    folder = Path(run)
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
    return text


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())
