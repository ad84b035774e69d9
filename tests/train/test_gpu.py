"""A training step on a CUDA device: it does not wait for the device, and it computes what the CPU computes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch import config
from hardpatch.data.loader import Batch
from hardpatch.models.tokenizer import DiscreteVAE
from hardpatch.targets import Target, VisualTokens
from hardpatch.train.build import initial_model, target_of
from hardpatch.train.optim import schedule
from hardpatch.train.step import Learner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

RUNS: dict[str, list[str]] = {
    "mae": [],
    "normalised": ["--method.target=normalised_pixels"],
    "teacher": ["--method.target=teacher"],
    "grid": ["--method.mask=grid", "--method.secondary_ratio=0.25"],
    "attention": ["--method.mask=attention_hint"],
    "block": ["--method.mask=block", "--method.mask_ratio=0.4"],
    "simmim": ["--method.host=simmim", "--method.mask_unit=8", "--model.positions=relative", "--model.drop_path=0.1"],
    "beit": ["--method.host=beit", "--model.layer_scale=0.1"],
    "ibot": ["--method.host=ibot", "--ibot.local_size=16", "--ibot.outputs=64", "--method.mask_ratio_spread=0.1"],
}


def learner(name: str, device: str, precision: str) -> Learner:
    settings = ["--method.alpha_start=0.3", "--data.image_size=32", "--model.patch_size=4", "--model.width=64"]
    settings += ["--model.depth=2", "--model.heads=2", "--model.decoder_width=32", "--model.decoder_depth=1"]
    settings += ["--model.decoder_heads=2", "--method.mask_ratio=0.5", "--optim.lr=1e-3", "--data.path=demo:train"]
    if name == "grid":
        settings += ["--method.mask_ratio=0.75"]
    run = config.build({"steps": 8, "batch_size": 8}, [*settings, *RUNS[name]])
    fabric = Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]
    target: Target | None = None
    outputs = None
    if name == "beit":
        torch.manual_seed(0)
        tokenizer = DiscreteVAE(patch_size=4, vocabulary=32, width=16).eval().to(device)
        target, outputs = VisualTokens(tokenizer, (8, 8)), 32
    else:
        target, outputs = target_of(run, fabric.device)
    model = initial_model(run, outputs=outputs)
    return Learner(run, model, fabric, 8, target)


def batch(name: str, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).pin_memory()

    images = pixels(16 if name == "ibot" else 8, 3, 32, 32)
    local = pixels(16, 3, 16, 16) if name == "ibot" else None
    indices = torch.arange(8).pin_memory()
    return Batch(images, indices, -torch.ones(8, dtype=torch.int64), [], local)


@pytest.fixture
def sync_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("sync_is_an_error")
def test_a_step_never_waits_for_the_device(name: str) -> None:
    train = learner(name, "cuda", "bf16-mixed")
    for step in range(3):
        made = batch(name, step)
        if step == 2:  # kernels are loaded and the optimiser has its state by then
            torch.cuda.set_sync_debug_mode("error")
        train.train_step(made, schedule(train.run, step, 8))
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", RUNS)
def test_three_steps_are_those_of_the_cpu(name: str) -> None:
    found: dict[str, list[Any]] = {}
    for device in ("cpu", "cuda"):
        train = learner(name, device, "32-true")
        steps = [train.train_step(batch(name, step), schedule(train.run, step, 8)) for step in range(3)]
        found[device] = [(step.problem.mask.masked.cpu(), step.losses.loss.cpu()) for step in steps]
    if name == "simmim":  # drop path draws from each device's own generator
        return
    for (mask, loss), (other_mask, other_loss) in zip(found["cpu"], found["cuda"], strict=True):
        assert torch.equal(mask, other_mask)
        assert other_loss.item() == pytest.approx(loss.item(), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_learns(precision: str) -> None:
    train = learner("mae", "cuda", precision)
    losses = [train.train_step(batch("mae", 0), schedule(train.run, step, 8)).losses.loss for step in range(8)]
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[0]
