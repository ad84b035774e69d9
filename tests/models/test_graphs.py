"""``torch.export`` and ``torch.jit.trace`` of encoder and predicted losses: traced with two images, run with others."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from hardpatch.methods.hpm import HPM
from hardpatch.models.encoder import Encoder
from hardpatch.models.positions import resample_in_graph, resample_positions
from hardpatch.models.variant import Variant
from tests.small import small_hpm, small_predictor, small_simmim

BATCHES = (1, 3, 7)
SIZE = (16, 24)


class Encode(nn.Module):
    def __init__(self, model: HPM) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


class PredictLoss(Encode):
    def forward(self, images: Tensor) -> Tensor:
        return self.model.predict_loss(images)


class Variants(nn.Module):
    """Registers, rotary positions and SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        variant = Variant(registers=2, rope_theta=100.0, activation="swiglu")
        shape: dict[str, Any] = {"patch_size": 4, "width": 32, "depth": 2, "heads": 2, "positions": None}
        torch.manual_seed(0)
        self.encoder = Encoder(image_size=SIZE, **shape, variant=variant)

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "encode, mae": lambda: Encode(small_hpm()),
    "predict_loss, mae": lambda: PredictLoss(small_hpm()),
    "encode, simmim": lambda: Encode(HPM(small_simmim(), small_predictor())),
    "predict_loss, simmim": lambda: PredictLoss(HPM(small_simmim(), small_predictor())),
    "variants": Variants,
}


def images(batch: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_torch_export_takes_any_batch(name: str) -> None:
    network = NETWORKS[name]().eval()
    program = torch.export.export(network, (images(2),), dynamic_shapes={"images": {0: Dim("batch")}})
    exported = program.module()
    for batch in BATCHES:
        assert torch.equal(exported(images(batch)), network(images(batch)))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_traces_take_any_batch(name: str) -> None:
    network = NETWORKS[name]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated, and that the image size is fixed
        traced: Any = torch.jit.trace(network, images(2))
    for batch in BATCHES:
        assert torch.equal(traced(images(batch)), network(images(batch)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["predict_loss, mae", "predict_loss, simmim", "variants"])
def test_torch_export_takes_any_size_where_it_is_dynamic(name: str) -> None:
    network = NETWORKS[name]().eval()
    shapes: dict[int, Any] = {0: Dim("batch"), 2: 4 * Dim("rows", max=512), 3: 4 * Dim("columns", max=512)}
    exported = torch.export.export(network, (images(2),), dynamic_shapes={"images": shapes}).module()
    for size in (SIZE, (20, 12), (8, 40)):
        expected = network(images(3, size))
        assert torch.allclose(exported(images(3, size)), expected, rtol=0, atol=1e-5), size


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("new", [(4, 5), (6, 3), (9, 20), (1, 13), (4, 6)])
def test_positions_in_a_graph_are_those_outside(new: tuple[int, int], learned: bool) -> None:
    positions = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    expected = resample_positions(positions, (4, 5), new, learned=learned)
    found = resample_in_graph(positions, (4, 5), new, learned=learned)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(found, positions) is (new == (4, 5))
