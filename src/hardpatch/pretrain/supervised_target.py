"""Target of reconstruction from a classifier that hardpatch trained: ``method.frozen: hardpatch``."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from hardpatch.data.reading import read_reading
from hardpatch.errors import UserError
from hardpatch.models.block import NORM_EPS
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.models.supervised_teacher import SupervisedTeacher
from hardpatch.train import checkpoint

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
    newest = checkpoint.newest(path) if path.is_dir() else None
    file = path if newest is None else newest / checkpoint.WEIGHTS
    metadata = (checkpoint.read_metadata(file) if file.is_file() and file.suffix == ".safetensors" else None) or {}
    if metadata.get("kind") != "classifier":
        raise UserError(f"{argument}: expected a run folder of hardpatch finetune, got {weights}")
    encoder = build_encoder(metadata["encoder"])
    if (encoder.grid, encoder.channels) != (grid, channels):
        raise UserError(
            f"{argument}: expected {grid[0]}x{grid[1]} patches of {channels} channels, as the student has, got "
            f"{encoder.grid[0]}x{encoder.grid[1]} of {encoder.channels}; fine-tune at the student's --image_size"
        )
    state = load_file(file)
    network = checkpoint.with_prefix(state, "teacher.") or checkpoint.with_prefix(state, "student.")
    encoder.norm = nn.Identity()  # type: ignore[assignment]  # the classifier has its norm after pooling
    encoder.load_state_dict(checkpoint.with_prefix(network, "encoder."))
    norm = nn.LayerNorm(encoder.width, eps=NORM_EPS)
    norm.load_state_dict(checkpoint.with_prefix(network, "fc_norm."))
    return SupervisedTeacher(encoder, norm, metadata["mean"], metadata["std"], read_reading(metadata))
