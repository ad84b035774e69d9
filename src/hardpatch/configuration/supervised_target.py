"""Target of reconstruction from a classifier that hardpatch trained: ``method.frozen: hardpatch``."""

from pathlib import Path

from torch import nn

from hardpatch.data.reading import read_reading
from hardpatch.errors import UserError
from hardpatch.models.block import NORM_EPS
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.models.supervised_teacher import SupervisedTeacher
from hardpatch.train import checkpoint
from hardpatch.weights import check_normalization, described, fitted, stored_tensors

NAME = "hardpatch"
"""The value of ``method.frozen``."""


def supervised_teacher(weights: str | None, grid: tuple[int, int], channels: int) -> SupervisedTeacher:
    """Load the encoder and norm of a network of ``hardpatch finetune``.

    Args:
        weights: its run folder (the newest checkpoint), or its ``model.safetensors``.
        grid: the student's (rows, columns) of patches.
        channels: of the pixels.

    Raises:
        UserError: if there is no such network, or its patches or channels are not the student's.
    """
    argument = "--method.frozen_weights"
    if weights is None:
        raise UserError(f"{argument}: expected a run folder of hardpatch finetune for --method.frozen {NAME}, got none")
    path = Path(weights)
    newest = checkpoint.newest_whole(path, (checkpoint.WEIGHTS,)) if path.is_dir() else None
    file = path if newest is None else newest / checkpoint.WEIGHTS
    metadata = (checkpoint.read_metadata(file) if file.is_file() and file.suffix == ".safetensors" else None) or {}
    if metadata.get("kind") != "classifier":
        raise UserError(f"{argument}: expected a run folder of hardpatch finetune, got {weights}")
    averaged = any(name.startswith("teacher.") for name in stored_tensors(file, argument))
    prefix = "teacher." if averaged else "student."

    def build() -> Encoder:
        check_normalization(metadata)
        encoder = build_encoder(metadata["encoder"])
        encoder.norm = nn.Identity()  # type: ignore[assignment]  # the classifier has its norm after pooling
        return encoder

    encoder = fitted(build, file, metadata, f"{prefix}encoder.", argument=argument)
    if (encoder.grid, encoder.channels) != (grid, channels):
        raise UserError(
            f"{argument}: expected {grid[0]}x{grid[1]} patches of {channels} channels, as the student has, got "
            f"{encoder.grid[0]}x{encoder.grid[1]} of {encoder.channels}; fine-tune at the student's --image_size"
        )
    norm = fitted(
        lambda: nn.LayerNorm(encoder.width, eps=NORM_EPS), file, metadata, f"{prefix}fc_norm.", argument=argument
    )
    with described(file, argument):
        return SupervisedTeacher(encoder, norm, metadata["mean"], metadata["std"], read_reading(metadata))
