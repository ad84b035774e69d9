"""Compiled steps use one graph for the student and one for the teacher, and compute the losses of uncompiled ones.

Generating code takes most of the time and happens in tests/end_to_end/test_compile.py. Here backends without it stand
in: what is a graph, and what must be compiled again, is decided before that.
"""

from collections.abc import Iterator

import pytest
import torch
from lightning_fabric import Fabric
from torch._dynamo.utils import counters

from hardpatch.bench.contenders import noise_batch
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, target_of
from hardpatch.errors import UserError
from hardpatch.methods.targets import Target, VisualTokens
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.patches import to_indices
from hardpatch.pretrain.compile import compile_parts
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner

CPU = torch.device("cpu")
STEPS = 10
RUNS: dict[str, list[str]] = {
    "mae": [],
    "guided": ["--method.target=teacher", "--method.mask=attention_hint", "--method.secondary_ratio=0.25"],
    "cheap": ["--fast.decoder=cross", "--fast.prediction_ratio=0.5", "--fast.teacher_resolution=0.5"],
    "simmim": ["--method.host=simmim", "--method.mask_unit=8", "--model.positions=relative"],
    "recompute": [
        "--train.checkpoint_activations=true",
        "--method.host=simmim",
        "--model.drop_path=0.5",
        "--model.depth=2",
    ],
    "beit": ["--method.host=beit", "--model.layer_scale=0.1"],
    "ibot": ["--method.host=ibot", "--ibot.local_size=8", "--ibot.local_crops=1", "--ibot.outputs=16"],
}


def make_learner(name: str, precision: str = "32-true", backend: str | None = "eager", *more: str) -> Learner:
    settings = ["--data.image_size=16", "--model.patch_size=4", "--model.width=16", "--model.depth=1"]
    settings += ["--model.heads=2", "--model.decoder_width=8", "--model.decoder_depth=2", "--model.decoder_heads=2"]
    settings += ["--method.alpha_start=0.3", "--method.alpha_end=1.0", "--optim.lr=1e-3"]
    settings += ["--ibot.head_hidden=8", "--ibot.head_bottleneck=8"]
    run = config.build({"steps": STEPS, "batch_size": 4}, [*settings, *RUNS[name], *more])
    target: Target | None
    if name == "beit":
        torch.manual_seed(0)
        target, outputs = VisualTokens(DiscreteVAE(patch_size=4, vocabulary=16, width=16).eval(), (4, 4)), 16
    else:
        target, outputs = target_of(run, CPU)  # type: ignore[assignment]
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    learner = Learner(run, initial_model(run, outputs=outputs), fabric, STEPS, target)
    if backend is not None:
        compile_parts(learner.model, learner.teacher, CPU, backend=backend)
    return learner


def train(learner: Learner, steps: int = STEPS) -> list[float]:
    """Return the losses of the first steps; every third step is observed."""
    batch, losses = noise_batch(learner.run, CPU), []
    for step in range(steps):
        values = schedule(learner.run, step, STEPS)
        losses.append(learner.train_step(batch, values, observe=step % 3 == 2).losses.loss.item())
    return losses


@pytest.fixture(autouse=True)
def reset_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", RUNS)
def test_one_graph_each_while_the_number_of_mined_patches_grows(name: str) -> None:
    # only backend eager draws drop path again in blocks that are recomputed
    backend = "aot_eager" if name == "recompute" else "eager"
    compiled, plain = make_learner(name, backend=backend), make_learner(name, backend=None)
    steps = STEPS if name == "mae" else 3
    losses = train(compiled, steps)
    # hosts that monitor tokens have a second graph of the student, for observed steps
    assert counters["stats"]["unique_graphs"] == (3 if name in ("beit", "ibot") else 2)
    assert not counters["graph_break"]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(train(plain, steps)), rtol=1e-5, atol=0)
    for one, other in ((compiled.model, plain.model), (compiled.teacher, plain.teacher)):
        assert one is not None
        assert other is not None
        assert list(one.state_dict()) == list(other.state_dict())  # compiling keeps the names of weights


def test_a_teacher_that_is_first_used_later_is_compiled_then() -> None:
    learner = make_learner("mae", "32-true", "eager", "--method.alpha_start=0")
    train(learner, 1)
    assert counters["stats"]["unique_graphs"] == 1
    train(learner)
    assert counters["stats"]["unique_graphs"] == 2


def test_half_precision_with_losses_in_float32() -> None:
    compiled, plain = make_learner("mae", "bf16-mixed", "aot_eager"), make_learner("mae", "bf16-mixed", None)
    torch.testing.assert_close(torch.tensor(train(compiled, 5)), torch.tensor(train(plain, 5)), rtol=4e-3, atol=0)
    assert counters["stats"]["unique_graphs"] == 2
    images = compiled.model.normalize(noise_batch(compiled.run, CPU).images)
    with compiled.fabric.autocast():
        losses = compiled.model(images.bfloat16(), to_indices(torch.arange(16).expand(4, -1) < 12, 12))
    assert counters["stats"]["unique_graphs"] == 2  # the same graph
    assert losses.predicted.dtype == torch.bfloat16
    in_float32 = (losses.loss, losses.reconstruction, losses.parts["predicting_loss"])
    assert [loss.dtype for loss in in_float32] == [torch.float32] * 3


def test_settings_that_cannot_be_compiled_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^train\.compile: needs as many masked patches in every step.*0\.1"):
        make_learner("ibot", "32-true", None, "--method.mask_ratio_spread=0.1", "--train.compile=yes")
    with pytest.raises(UserError, match=r"^optim\.accumulation_steps: auto cannot try out"):
        make_learner("mae", "32-true", None, "--optim.accumulation_steps=auto", "--train.compile=cuda_graphs")
    with pytest.raises(UserError, match=r"^train\.compile: cuda_graphs needs a CUDA device, got cpu; use yes or no$"):
        make_learner("mae", "32-true", None, "--train.compile=cuda_graphs")
