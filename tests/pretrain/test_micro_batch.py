"""optim.accumulation_steps auto, on a device whose memory is simulated: it holds a limited number of images."""

import copy

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, target_of
from hardpatch.errors import UserError
from hardpatch.methods.hpm import Losses
from hardpatch.patches import PatchIndices
from hardpatch.pretrain.micro_batch import candidates, fewest_accumulation_steps
from hardpatch.pretrain.step import Learner


def make_learner(*more: str, batch_size: int = 12) -> Learner:
    settings = ["--data.image_size=16", "--model.patch_size=4", "--model.width=16", "--model.depth=1"]
    settings += ["--model.heads=2", "--model.decoder_width=8", "--model.decoder_depth=1", "--model.decoder_heads=2"]
    run = config.build({"steps": 4, "batch_size": batch_size}, [*settings, "--optim.accumulation_steps=auto", *more])
    fabric = Fabric(accelerator="cpu", devices=1)
    target, outputs = target_of(run, fabric.device)
    return Learner(run, initial_model(run, outputs=outputs), fabric, 4, target, images=batch_size)


def limit_memory(learner: Learner, images: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the student run out of memory beyond ``images`` images. Returns a list that collects the sizes tried."""
    sizes: list[int] = []
    encode = learner.model.host.encode

    def encode_within_limit(pixels: Tensor, mask: PatchIndices | None = None) -> Tensor:
        if torch.is_grad_enabled() and pixels.shape[-1] == 16:  # neither the teacher nor small crops
            sizes.append(len(pixels))
            if len(pixels) > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels, mask)

    monkeypatch.setattr(learner.model.host, "encode", encode_within_limit)
    return sizes


@pytest.mark.parametrize(
    ("images", "count", "tried"),
    [(12, 1, [12]), (11, 2, [12, 6, 6]), (5, 4, [12, 6, 3, 3]), (2, 6, [12, 6, 3, 2, 2]), (1, 12, [12, 6, 3, 2, 1, 1])],
)
def test_the_fewest_micro_batches_that_fit(
    images: int, count: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner()
    sizes = limit_memory(learner, images, monkeypatch)
    assert fewest_accumulation_steps(learner) == count
    assert sizes == tried


def test_single_images_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner()
    limit_memory(learner, 0, monkeypatch)
    with pytest.raises(UserError, match=r"optim\.accumulation_steps: .*not even single images") as caught:
        fewest_accumulation_steps(learner)
    assert "\n" not in str(caught.value)


def test_order_of_the_candidates() -> None:
    assert candidates(12) == [1, 2, 4, 6, 12]
    assert candidates(16) == [1, 2, 4, 8, 16]
    assert candidates(9) == [1, 3, 9]
    assert candidates(1) == [1]


def copy_state(learner: Learner) -> dict[str, Tensor]:
    """Copy weights, buffers, difficulty memory, sums of the metrics and the random state."""
    state = {f"student.{name}": value.clone() for name, value in learner.model.state_dict().items()}
    if learner.teacher is not None:
        state |= {f"teacher.{name}": value.clone() for name, value in learner.teacher.state_dict().items()}
    if learner.mining.memory is not None:
        state["memory"] = learner.mining.memory.maps.clone()
    means = copy.deepcopy(learner.means).read()
    return state | {"means": torch.tensor(list(means.values())), "random": torch.get_rng_state()}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--method.host=ibot", "--ibot.local_size=8", "--ibot.outputs=16", "--ibot.head_hidden=8"),
        ("--fast.remember=true",),
        ("--method.target=teacher", "--model.drop_path=0.5"),
    ],
)
def test_trying_changes_nothing(more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(*more)
    learner.means.add(Losses(torch.tensor(3.0), torch.ones(1, 1), None, {"reconstruction_loss": torch.tensor(2.0)}, {}))
    limit_memory(learner, 7 if learner.run.method.host == "ibot" else 3, monkeypatch)  # iBOT has two crops of an image
    before = copy_state(learner)
    assert fewest_accumulation_steps(learner) == 4
    after = copy_state(learner)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert not learner.adamw.state
    assert (learner.step, learner.accumulation_steps) == (0, 1)
    assert learner.means.read() == {"loss": 3.0, "reconstruction_loss": 2.0}
