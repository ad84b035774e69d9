"""Training steps on a CUDA device.

They never wait for the device, and they compute the losses of the CPU: compiled, with CUDA graphs and in micro-batches
as well.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.cli import main
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, target_of
from hardpatch.data.batch import Batch
from hardpatch.methods.targets import Target, VisualTokens
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.pretrain.micro_batch import MARGIN, fewest_accumulation_steps
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner
from hardpatch.train.metrics import read_metrics

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # float32 is compared in full
]

RUNS: dict[str, list[str]] = {
    "mae": [],
    "normalized": ["--method.target=normalized_pixels"],
    "teacher": ["--method.target=teacher"],
    "grid": ["--method.mask=grid", "--method.secondary_ratio=0.25"],
    "attention": ["--method.mask=attention_hint"],
    "block": ["--method.mask=block", "--method.mask_ratio=0.4"],
    "simmim": ["--method.host=simmim", "--method.mask_unit=8", "--model.positions=relative", "--model.drop_path=0.1"],
    "beit": ["--method.host=beit", "--model.layer_scale=0.1"],
    "ibot": ["--method.host=ibot", "--ibot.local_size=16", "--ibot.outputs=64", "--method.mask_ratio_spread=0.1"],
}


def make_learner(name: str, device: str, precision: str, *more: str) -> Learner:
    settings = ["--method.alpha_start=0.3", "--data.image_size=32", "--model.patch_size=4", "--model.width=64"]
    settings += ["--model.depth=2", "--model.heads=2", "--model.decoder_width=32", "--model.decoder_depth=1"]
    settings += ["--model.decoder_heads=2", "--method.mask_ratio=0.5", "--optim.lr=1e-3", "--data.path=demo:train"]
    if name == "grid":
        settings += ["--method.mask_ratio=0.75"]
    run = config.build({"steps": 8, "batch_size": 8}, [*settings, *RUNS[name], *more])
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


def make_batch(name: str, step: int) -> Batch:
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
    learner = make_learner(name, "cuda", "bf16-mixed")
    for step in range(3):
        batch = make_batch(name, step)
        if step == 2:  # kernels are loaded and the optimizer has its state by then
            torch.cuda.set_sync_debug_mode("error")
        learner.train_step(batch, schedule(learner.run, step, 8))
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", RUNS)
def test_three_steps_are_those_of_the_cpu(name: str) -> None:
    results: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for device in ("cpu", "cuda"):
        learner = make_learner(name, device, "32-true")
        steps = [learner.train_step(make_batch(name, step), schedule(learner.run, step, 8)) for step in range(3)]
        results[device] = [(step.mined.mask.masked.cpu(), step.losses.loss.cpu()) for step in steps]
    if name == "simmim":  # drop path draws from each device's own generator
        return
    for (mask, loss), (other_mask, other_loss) in zip(results["cpu"], results["cuda"], strict=True):
        assert torch.equal(mask, other_mask)
        assert other_loss.item() == pytest.approx(loss.item(), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_learns(precision: str) -> None:
    learner = make_learner("mae", "cuda", precision)
    losses = [learner.train_step(make_batch("mae", 0), schedule(learner.run, step, 8)).losses.loss for step in range(8)]
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[0]


def compiled(name: str, precision: str, how: str, *more: str) -> Learner:
    torch.compiler.reset()
    return make_learner(name, "cuda", precision, f"--train.compile={how}", *more)


def losses_of(learner: Learner, name: str, steps: int = 5) -> list[float]:
    """Return the losses of the first steps, each read before the next step, as CUDA graphs require."""

    def loss(step: int) -> float:
        return learner.train_step(make_batch(name, step), schedule(learner.run, step, 8)).losses.loss.item()

    return [loss(step) for step in range(steps)]


@pytest.mark.parametrize("how", ["yes", "cuda_graphs"])
@pytest.mark.parametrize("name", ["mae", "teacher", "attention", "simmim", "beit", "ibot"])
def test_compiled_steps_are_the_plain_ones(name: str, how: str) -> None:
    more = ["--method.mask_ratio_spread=0", "--model.drop_path=0"]
    plain = losses_of(make_learner(name, "cuda", "32-true", *more), name)
    assert losses_of(compiled(name, "32-true", how, *more), name) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("how", ["yes", "cuda_graphs"])
def test_compiled_steps_in_half_precision(how: str) -> None:
    plain = losses_of(make_learner("mae", "cuda", "bf16-mixed"), "mae")
    assert losses_of(compiled("mae", "bf16-mixed", how), "mae") == pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("how", ["yes", "cuda_graphs"])
def test_compiled_steps_in_micro_batches(how: str) -> None:
    """Gradients of all micro-batches add up: CUDA graphs must not overwrite those of an earlier one."""
    plain = losses_of(make_learner("mae", "cuda", "32-true", "--optim.accumulation_steps=4"), "mae")
    accumulated = compiled("mae", "32-true", how, "--optim.accumulation_steps=4")
    assert losses_of(accumulated, "mae") == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("how", ["yes", "cuda_graphs"])
@pytest.mark.usefixtures("sync_is_an_error")
def test_a_compiled_step_never_waits_for_the_device(how: str) -> None:
    learner = compiled("mae", "bf16-mixed", how)
    for step in range(6):
        batch = make_batch("mae", step)
        if step == 5:  # compiled, warmed up and recorded by then
            torch.cuda.set_sync_debug_mode("error")
        learner.train_step(batch, schedule(learner.run, step, 8))
    torch.cuda.set_sync_debug_mode("default")


def blank(images: int) -> Batch:
    pixels = torch.zeros(images, 3, 32, 32, dtype=torch.uint8)
    return Batch(pixels, torch.arange(images), -torch.ones(images, dtype=torch.int64), [])


@pytest.mark.parametrize("how", ["no", "yes"])
def test_recomputed_blocks_take_less_memory(how: str) -> None:
    """The batch is so large that activations take far more memory than gradients."""
    deep = ["--batch_size=256", "--model.depth=12", "--model.width=256", "--method.predicting_loss=none"]
    peaks = []
    for recompute in ("false", "true"):
        torch.compiler.reset()
        more = [f"--train.compile={how}", f"--train.checkpoint_activations={recompute}"]
        learner = make_learner("mae", "cuda", "bf16-mixed", *deep, *more)
        learner.train_step(blank(256), schedule(learner.run, 0, 8))  # compiled, and the optimizer has its state
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        learner.train_step(blank(256), schedule(learner.run, 1, 8))
        peaks.append(torch.cuda.max_memory_allocated() - held)
        del learner
    assert peaks[1] < 0.8 * peaks[0]


def test_auto_finds_micro_batches_that_fit() -> None:
    """512 images take about 1.7 GiB at once; in the micro-batches found, a whole step fits into 1 GiB."""
    learner = make_learner("mae", "cuda", "32-true", "--batch_size=512", "--model.width=256", "--model.depth=6")
    assert fewest_accumulation_steps(learner) == 1
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + int(MARGIN * total) + 2**30  # the margin stays free
    try:
        torch.cuda.set_per_process_memory_fraction(allowed / total)
        learner.accumulation_steps = fewest_accumulation_steps(learner)
        assert 1 < learner.accumulation_steps < 512
        assert 512 % learner.accumulation_steps == 0
        for step in range(2):
            learner.train_step(blank(512), schedule(learner.run, step, 8))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_peak_memory_is_in_the_metrics(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["--recipe=demo", "--steps=2", "--model.width=32", "--model.depth=1", "--model.heads=2"]
    settings += ["--train.device=cuda", "--data.workers=0", "--optim.accumulation_steps=auto", f"--out={run}"]
    assert main(["pretrain", *settings]) == 0
    *_, row = read_metrics(run / "metrics.jsonl")
    assert 0.0 < row["memory_gib"] < 8.0
    assert "accumulation_steps auto: 1 micro-batches of 128 images on cuda:0" in (run / "log.txt").read_text()
    assert "accumulation_steps: auto" in (run / "config.yaml").read_text()
