"""What `hardpatch bench` lets run is the same work, and its turns are fair."""

import importlib.util
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hardpatch.bench.contenders import NotHereError, contender, noise_batch
from hardpatch.bench.flops import linear, step_flops
from hardpatch.bench.timing import WARM_UP, Lane, spread, take_turns
from hardpatch.pretrain import config
from hardpatch.pretrain.sections import RunConfig


def tiny(*more: str) -> RunConfig:
    settings = ["--data.image_size=16", "--model.patch_size=4", "--model.width=32", "--model.depth=2"]
    settings += ["--model.heads=2", "--model.decoder_width=16", "--model.decoder_depth=2", "--model.decoder_heads=2"]
    return config.build({"steps": 1000, "batch_size": 4}, [*settings, *more])


def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("name", ["transformers", "lightly"])
def test_a_peer_does_the_same_work(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    run = tiny()
    made = contender(name, run, fabric(), noise_batch(run, torch.device("cpu")))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made.step()
    literal = step_flops(made.run, literal=True)
    assert literal is not None
    expected = sum(literal.values())
    if name == "lightly":  # has its head on masked patches only: 12 of 17 tokens
        expected -= 3 * linear(17 - 12, 16, 48)
    assert counter.get_total_flops() == 4 * expected


def test_a_peer_refuses_what_it_cannot_do() -> None:
    run = tiny("--data.image_size=[16,24]")
    with pytest.raises(NotHereError, match="square images"):
        contender("transformers", run, fabric(), noise_batch(run, torch.device("cpu")))


def test_turns_go_there_and_back() -> None:
    order: list[str] = []
    lanes: list[Any] = [Lane(lambda name=name: order.append(name)) for name in "abc"]  # type: ignore[misc]
    heard: list[tuple[int, int]] = []
    take_turns(lanes, 2, torch.device("cpu"), lambda done, of: heard.append((done, of)))
    assert "".join(order) == "abccba" * 2
    assert [len(lane.seconds) for lane in lanes] == [2, 2, 2]
    assert heard == [(k, 4) for k in range(1, 5)]
    assert WARM_UP == 2


def test_spread() -> None:
    assert spread([3.0]) == (3.0, 3.0, 3.0)
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)
    assert f"{spread([5.0, 1.0, 3.0, 2.0, 4.0]):.1f}" == "3.0 (2.0 to 4.0)"


def test_who_does_not_fit_leaves_the_turns() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError

    lanes = [Lane(too_large), Lane(lambda: None)]
    take_turns(lanes, 3, torch.device("cpu"))
    assert [lane.out_of_memory for lane in lanes] == [True, False]
    assert len(lanes[1].seconds) == 3
