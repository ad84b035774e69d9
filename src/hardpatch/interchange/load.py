"""Load the model of a run folder or of a weights file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError

from hardpatch.choices import Architecture, WeightsName
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, target_of
from hardpatch.configuration.sections import RunConfig
from hardpatch.configuration.upgrade import upgrade
from hardpatch.data.reading import read_reading
from hardpatch.errors import UserError
from hardpatch.interchange.finetuned import load_encoder, read_finetuned, result_files
from hardpatch.interchange.foreign import read_foreign
from hardpatch.interchange.hub import fetch, is_hub_name
from hardpatch.interchange.tensors import FILES, check_content
from hardpatch.methods.hpm import HPM
from hardpatch.methods.targets import HostTargets, Target
from hardpatch.paths import user_path
from hardpatch.ranges import check_options
from hardpatch.train import checkpoint
from hardpatch.train.manifest import damage, may_be_listed
from hardpatch.weights import check_normalization, described, fitted, stored_tensors

T = TypeVar("T")

RETRIES = 100
"""Times that a file is looked for again which a running training has removed."""


class TrainingMasks(NamedTuple):
    """Masking of a run."""

    mask_ratio: float
    predict: Literal["whole", "masked"]
    """source of the difficulty by which it mined: predictions from whole images, or of masked patches"""


def load(
    run: str | Path,
    weights: WeightsName = "auto",
    *,
    device: str | torch.device = "cpu",
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    normalize_pixels: bool = False,
) -> HPM:
    """Load the model of a run or of another library's weights, in eval mode and without gradients.

    It has ``encode(images, mask=None) -> [B, 1 + V, D]``, ``predict_loss(images) -> [B, N]``,
    ``reconstruct(latent, mask) -> [B, M, p * p * C]`` and ``normalize(uint8 images)``, whose result the others
    take as ``images``; see :class:`~hardpatch.methods.hpm.HPM`.

    Args:
        run: a run folder (its newest checkpoint) or a ``.safetensors`` file of it; or weights of a Vision Transformer
            with class token from timm, Hugging Face (a folder, too), DINO, DINOv2, DINOv3, iBOT, DeiT, BEiT, CLIP, or
            of HPM and MAE; ``timm:NAME`` and ``hf:OWNER/NAME`` are fetched from the hub. Without a decoder in the file
            the model encodes only, as it does for a run of ``finetune``, ``segment`` or ``detect``, whose encoder is
            read; :func:`hardpatch.load_finetuned` reads the whole network.
        weights: ``student``, from which fine-tuning starts; ``teacher``, which mines and cannot reconstruct;
            ``random``, the initialization of the run; or ``auto``, see :data:`~hardpatch.choices.WeightsName`.
        device: where to put it.
        heads: of weights of other libraries, where neither their shapes nor a ``config.json`` beside them say it.
        decoder_heads: likewise.
        image_size: (height, width) in pixels, likewise, for positions of a grid that is not square.
        normalize_pixels: likewise.

    Raises:
        UserError: if there is nothing to load, the file is of another kind, or it could run code.
    """
    check_options(heads=heads, decoder_heads=decoder_heads)
    options = {"heads": heads, "decoder_heads": decoder_heads, "image_size": image_size}
    return read_newest(run, lambda path: _load(path, weights, options | {"normalize_pixels": normalize_pixels})).to(
        device
    )


def _load(path: Path, weights: WeightsName, options: dict[str, Any]) -> HPM:
    finetuned, metadata = read_finetuned(path), read_metadata(path)
    if finetuned is not None:
        model = load_encoder(path, finetuned, weights)
    elif metadata is None:
        if weights == "random":
            raise UserError(f"--weights random: {path} does not say how it was initialized; use a run of hardpatch")
        model, _ = read_foreign(path, weights, **options)
    else:
        model = _of_run(path, metadata, weights)
    return model.requires_grad_(False).eval()


def _of_run(path: Path, metadata: dict[str, Any], weights: WeightsName) -> HPM:
    """Build the model that metadata describes, and load its weights."""
    prefix = "teacher." if weights == "teacher" else "student."
    if not any(name.startswith(prefix) for name in stored_tensors(path)):
        raise UserError(
            f"weights: expected those of the student, since {path} has no teacher (a run keeps none where it mines "
            f"nothing, or by the losses that it remembers); got {weights!r}"
        )

    def build() -> HPM:
        check_normalization(metadata)
        settings, reading = read_settings(metadata, path), read_reading(metadata)
        model = initial_model(settings, metadata["mean"], metadata["std"], metadata["outputs"], reading)
        for name in model.host.reconstruction_only if weights == "teacher" else ():
            setattr(model.host, name, None)
        return model

    return fitted(build, path, metadata, prefix, load=weights != "random")


def load_pair(
    run: str | Path,
    *,
    device: str | torch.device = "cpu",
    normalize_pixels: bool = False,
    architecture: Architecture | None = None,
) -> tuple[HPM, HPM]:
    """Load student and teacher of a run; the student twice if the file has no teacher.

    Raises:
        UserError: as :func:`load`.
    """

    def pair(path: Path) -> tuple[HPM, HPM]:
        options: dict[str, Any] = {"device": device, "normalize_pixels": normalize_pixels, **(architecture or {})}
        student = load(path, "student", **options)
        try:
            return student, load(path, "teacher", **options)
        except UserError:
            if not path.exists():
                raise
            return student, student

    return read_newest(run, pair)


def load_target(run: str | Path, teacher: HPM, *, device: str | torch.device = "cpu") -> Target | None:
    """Load the reconstruction target of a run, None for the student's own pixels.

    Args:
        run: as for :func:`load`.
        teacher: of the run.
        device: where to put the target's network.

    Raises:
        UserError: if the target's network cannot be loaded.
    """
    settings = read_newest(run, _settings)
    if settings is None:
        return None
    if teacher.host.uses_teacher:
        return HostTargets(teacher.host)
    return target_of(settings, torch.device(device))[0]


def training_masks(run: str | Path) -> TrainingMasks:
    """Return the mask ratio of a run and its source of difficulty; 0.75 and whole images for weights of other origin.

    With ``fast.remember`` the difficulty was predicted for masked patches.
    """
    settings = read_newest(run, _settings)
    if settings is None:
        return TrainingMasks(0.75, "whole")
    return TrainingMasks(settings.method.mask_ratio, "masked" if settings.fast.remember else "whole")


def _settings(path: Path) -> RunConfig | None:
    metadata = read_metadata(path)
    return None if metadata is None else read_settings(metadata, path)


def training_step(path: Path) -> dict[str, int]:
    """Return the ``step`` of a weights file of a run, and the ``steps`` of the whole run; empty for other weights."""
    metadata = read_metadata(path) or {}
    return {name: metadata[name] for name in ("step", "steps") if name in metadata}


def read_settings(metadata: dict[str, Any], path: Path) -> RunConfig:
    """Return the configuration in the metadata of a weights file, whichever version wrote it."""
    with described(path):
        if not isinstance(metadata["config"], dict):
            raise TypeError(f"config: expected sections of settings, got {str(metadata['config'])[:40]}")
        return config.build(upgrade(metadata["config"], str(path)))


def read_newest(run: str | Path, read: Callable[[Path], T]) -> T:
    """Return what ``read`` makes of :func:`weights_file`; again if a training removed that file meanwhile."""
    for _ in range(RETRIES):
        path = weights_file(run)
        try:
            return read(path)
        except (UserError, OSError, SafetensorError, RuntimeError):  # the last one is torch's of a missing file
            if path.exists() or path == Path(run):
                raise
    return read(weights_file(run))


def weights_file(run: str | Path) -> Path:
    """Return the path of the weights file of a run folder, of a weights file, or of a name on the hub.

    Raises:
        UserError: if there is none.
    """
    name = os.fspath(run)
    path = fetch(name) if is_hub_name(name) and not Path(name).exists() else user_path(run, "RUN")
    if path.is_dir():
        weights = next((path / name for name in (*FILES, *result_files(path)) if (path / name).is_file()), None)
        if weights is not None:
            return _whole(weights)
        newest = checkpoint.newest_whole(path, (checkpoint.WEIGHTS,))
        if newest is None:
            raise UserError(f"RUN: expected a run folder with checkpoints/ or a weights file, {path} has no checkpoint")
        return newest / checkpoint.WEIGHTS
    if not path.is_file():
        raise UserError(f"RUN: expected a run folder or a weights file, {path} does not exist")
    return _whole(path)


def _whole(file: Path) -> Path:
    """Return a weights file after comparing it with the manifest beside it, if there is one that lists it.

    Raises:
        UserError: if it is damaged.
    """
    check_content(file)
    reason = damage(file.parent, (file.name,)) if may_be_listed(file) else None
    if reason is not None and file.exists():
        raise UserError(f"RUN: {file} is damaged ({reason}); take another checkpoint of the run")
    return file


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Read the metadata of the weights file of a pre-training run, None for other files and fine-tuned networks.

    Raises:
        UserError: if a ``.safetensors`` file is broken, or of another kind of run.
    """
    metadata = checkpoint.read_metadata(path) if path.suffix == ".safetensors" else None
    if metadata is not None and "config" not in metadata:
        if read_finetuned(path) is not None:
            return None
        raise UserError(
            f"RUN: expected a pre-training run, {path} is of another kind, {metadata.get('kind', 'unnamed')}"
        )
    return metadata
