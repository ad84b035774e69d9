"""optim.accumulation_steps auto, with a memory that ends at so many images."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.pretrain import config
from hardpatch.pretrain.build import initial_model, target_of
from hardpatch.pretrain.micro_batch import candidates, fewest_pieces
from hardpatch.pretrain.step import Learner


def learner(*more: str, batch_size: int = 12) -> Learner:
    settings = ["--data.image_size=16", "--model.patch_size=4", "--model.width=16", "--model.depth=1"]
    settings += ["--model.heads=2", "--model.decoder_width=8", "--model.decoder_depth=1", "--model.decoder_heads=2"]
    run = config.build({"steps": 4, "batch_size": batch_size}, [*settings, "--optim.accumulation_steps=auto", *more])
    fabric = Fabric(accelerator="cpu", devices=1)
    target, outputs = target_of(run, fabric.device)
    return Learner(run, initial_model(run, outputs=outputs), fabric, 4, target, images=batch_size)


def limit(train: Learner, images: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the student run out of memory beyond so many images; returns how many it is given each time."""
    seen: list[int] = []
    encode = train.model.host.encode

    def short_of_memory(pixels: Tensor, *rest: object) -> Tensor:
        if torch.is_grad_enabled() and pixels.shape[-1] == 16:  # not the teacher, nor small crops
            seen.append(len(pixels))
            if len(pixels) > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(train.model.host, "encode", short_of_memory)
    return seen


@pytest.mark.parametrize(
    ("images", "pieces", "tried"),
    [(12, 1, [12]), (11, 2, [12, 6, 6]), (5, 4, [12, 6, 3, 3]), (2, 6, [12, 6, 3, 2, 2]), (1, 12, [12, 6, 3, 2, 1, 1])],
)
def test_the_fewest_pieces_that_fit(
    images: int, pieces: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = learner()
    seen = limit(train, images, monkeypatch)
    assert fewest_pieces(train) == pieces
    assert seen == tried


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    train = learner()
    limit(train, 0, monkeypatch)
    with pytest.raises(UserError, match=r"optim\.accumulation_steps: .*not even single images") as caught:
        fewest_pieces(train)
    assert "\n" not in str(caught.value)


def test_order() -> None:
    assert candidates(12) == [1, 2, 4, 6, 12]
    assert candidates(16) == [1, 2, 4, 8, 16]
    assert candidates(9) == [1, 3, 9]
    assert candidates(1) == [1]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--method.host=ibot", "--ibot.local_size=8", "--ibot.outputs=16", "--ibot.head_hidden=8"),
        ("--fast.remember=true",),
        ("--method.target=teacher", "--model.drop_path=0.5"),
    ],
)
def test_nothing_is_changed_by_trying(more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    train = learner(*more)

    def state() -> dict[str, Tensor]:
        found = {f"student.{name}": value.clone() for name, value in train.model.state_dict().items()}
        if train.teacher is not None:
            found |= {f"teacher.{name}": value.clone() for name, value in train.teacher.state_dict().items()}
        if train.memory is not None:
            found["maps"] = train.memory.maps.clone()
        return found | {"means": train.means.sums.clone(), "random": torch.get_rng_state()}

    limit(train, 7 if train.ibot else 3, monkeypatch)  # host ibot has two crops of each image
    before = state()
    assert fewest_pieces(train) == 4
    after = state()
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)
    assert all(parameter.grad is None for parameter in train.model.parameters())
    assert not train.adamw.state
    assert (train.step, train.pieces, train.means.count) == (0, 1, 0)
