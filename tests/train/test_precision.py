import torch
from torch import Tensor, nn

from hardpatch.train.device import start_fabric


class RecordTypes(nn.Module):
    """Records the types of its input and of its layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.input_type, self.output_type = x.dtype, self.layer(x).dtype
        return x


def test_layers_compute_in_half_precision_and_pixels_are_not_rounded() -> None:
    fabric = start_fabric("cpu", "bf16", "train.")
    recorder = RecordTypes()
    module = fabric.setup_module(recorder)
    pixels = torch.rand(2, 4)
    assert torch.equal(module(pixels), pixels)
    assert (recorder.input_type, recorder.output_type) == (torch.float32, torch.bfloat16)
