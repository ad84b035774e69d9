"""Model card of an export: recipe, data counts and figures, the parity report, open license fields."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hardpatch import __version__
from hardpatch.errors import UserError
from hardpatch.export.result import ExportResult
from hardpatch.interchange.finetuned import VERBS, read_finetuned
from hardpatch.interchange.load import read_metadata, weights_file
from hardpatch.train.result import RESULT

CARD = "README.md"
LICENSE_NOTE = f"{CARD}: the licenses of the weights and of the images are left for you to fill in"
RECIPE = {
    "method": ("host", "target", "mask", "mask_ratio", "predicting_loss", "alpha_start", "alpha_end"),
    "model": ("size", "width", "depth", "heads", "patch_size", "positions"),
    "optim": ("lr", "base_lr", "weight_decay"),
}
"""Settings of a pre-training run that are shown, by section; its whole configuration is in the run folder"""
LENGTH = ("epochs", "steps", "batch_size", "seed")


def model_card(run: str | Path, result: ExportResult, library: str) -> str:
    """Return the text of ``README.md``.

    Args:
        run: what was exported.
        result: of the export.
        library: ``library_name`` of the hub.
    """
    lines = [
        "---",
        f"library_name: {library}",
        "tags: [hardpatch, vision-transformer, self-supervised-learning]",
        "# license: FILL IN, as https://hf.co/docs/hub/repositories-licenses lists them",
        "---",
        "",
        f"# {result.path.name}",
        "",
        f"A Vision Transformer, exported by hardpatch {__version__}. Load it with",
        "",
        "```python",
        _published(result, result.code),
        "```",
        "",
        *_preparation(result),
        "",
        *_recipe(run),
        *_figures(run),
        "## License",
        "",
        "To be filled in by whoever publishes this folder; hardpatch does not know them.",
        "",
        "- License of the weights: **FILL IN**",
        "- License of the images that they were trained on: **FILL IN**",
        "- License of the weights that the training started from, if any: **FILL IN**",
        "",
        "## Parity with hardpatch",
        "",
        *(f"- {line}" for line in result.report()),
    ]
    return "\n".join(lines) + "\n"


def _published(result: ExportResult, code: str) -> str:
    """Return code without the place of the folder on this machine."""
    return code.replace(str(result.path), result.path.name)


def _preparation(result: ExportResult) -> Iterator[str]:
    height, width = result.image_size
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (result.mean, result.std))
    yield f"Images: {height} x {width} px, pixels in [0, 1], normalized with mean {mean} and deviation {std}."
    if result.preprocessing is not None and result.not_from_files is None:
        yield f"Prepare them with `{_published(result, result.preprocessing)}`."


def _recipe(run: str | Path) -> Iterator[str]:
    """Yield the settings of the run, as its weights file holds them; nothing for weights of other origin."""
    file = weights_file(run)
    finetuned = read_finetuned(file)
    if finetuned is not None:
        yield from ("## Training", "", f"`hardpatch {VERBS[finetuned.kind]}`, {len(finetuned.classes)} classes.", "")
        yield from (f"- {name}: {value}" for name, value in sorted(finetuned.training.items()) if _plain(value))
        yield ""
        return
    metadata = read_metadata(file)
    if metadata is None:
        yield from ("## Training", "", f"Not by hardpatch: read from {file.name}, which does not say.", "")
        return
    config = metadata["config"]
    yield from ("## Training", "", "`hardpatch pretrain`, without labels (Hard Patches Mining).", "")
    yield from (f"- {name}: {config[name]}" for name in LENGTH if config.get(name) is not None)
    for section, names in RECIPE.items():
        values = config.get(section, {})
        yield from (f"- {section}.{name}: {values[name]}" for name in names if values.get(name) is not None)
    step, steps = metadata.get("step"), metadata.get("steps")
    yield from (*((f"- weights after step {step}" + (f" of {steps}" if steps else ""),) if step else ()), "")


def _figures(run: str | Path) -> Iterator[str]:
    """Yield image counts and numbers of ``result.json`` in a run folder."""
    try:
        found: Any = json.loads((Path(run) / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(found, dict):
        return
    images = found.get("images")
    if isinstance(images, Mapping):
        yield from ("## Data", "", *(f"- images, {name}: {count}" for name, count in images.items()), "")
    figures = [f"- {name}: {value:.6g}" for name, value in _numbers(found)]
    if figures:
        yield from ("## Figures of the run", "", *figures, "")


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, bool) or name in ("images", "left_out", "seconds", "classes", "train_pixels"):
            continue
        if isinstance(value, int | float):
            yield prefix + name, value
        elif isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")


def _plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


def write_card(folder: Path, run: str | Path, result: ExportResult, library: str) -> None:
    """Write ``README.md`` and ``parity.json`` into a folder that is not in place yet.

    Raises:
        UserError: if the run was removed meanwhile.
    """
    try:
        text = model_card(run, result, library)
    except OSError as error:
        raise UserError(f"RUN: {run} cannot be read any more: {error}") from None
    (folder / CARD).write_text(text, encoding="utf-8")
    parity = {
        "library": result.library,
        "outputs": result.difference and result.difference._asdict(),
        "files": result.files and result.files._asdict(),
        "report": result.report(),
    }
    (folder / "parity.json").write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
