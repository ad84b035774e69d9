"""Choices that a setting lists in its type, which cannot be computed: they are those of the models."""

from typing import get_args, get_type_hints

from hardpatch.models.encoder import SIZES
from hardpatch.models.positions import Positions
from hardpatch.pretrain.sections import ModelConfig


def test_settings_offer_the_sizes_and_positions_of_the_encoder() -> None:
    hints = get_type_hints(ModelConfig)
    assert get_args(hints["size"]) == tuple(SIZES)
    assert get_args(hints["positions"]) == get_args(Positions)
