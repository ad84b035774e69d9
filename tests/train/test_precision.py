import torch
from torch import Tensor, nn

from hardpatch.train.device import start_fabric


class Notes(nn.Module):
    """Notes what it is given, and what its layer makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.given, self.made = x.dtype, self.layer(x).dtype
        return x


def test_half_precision_is_for_layers_and_not_for_pixels() -> None:
    fabric = start_fabric("cpu", "bf16", "train.")
    notes = Notes()
    module = fabric.setup_module(notes)
    pixels = torch.rand(2, 4)
    assert torch.equal(module(pixels), pixels)
    assert (notes.given, notes.made) == (torch.float32, torch.bfloat16)
