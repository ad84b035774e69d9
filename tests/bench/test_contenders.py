"""Contenders of `hardpatch bench` do the same work, and take fair turns."""

import importlib.util
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hardpatch.bench.contenders import UnavailableError, noise_batch, prepare_contender
from hardpatch.bench.flops import linear, step_flops
from hardpatch.bench.timing import WARM_UP, TimedStep, quartiles, take_turns
from hardpatch.configuration import config
from hardpatch.configuration.sections import RunConfig


def tiny(*arguments: str) -> RunConfig:
    settings = ["--data.image_size=16", "--model.patch_size=4", "--model.width=32", "--model.depth=2"]
    settings += ["--model.heads=2", "--model.decoder_width=16", "--model.decoder_depth=2", "--model.decoder_heads=2"]
    return config.build({"steps": 1000, "batch_size": 4}, [*settings, *arguments])


def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("name", ["transformers", "lightly"])
def test_another_library_does_the_same_work(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    run = tiny()
    contender = prepare_contender(name, run, fabric(), noise_batch(run, torch.device("cpu")))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        contender.step()
    literal = step_flops(contender.run, literal=True)
    assert literal is not None
    expected = sum(literal.values())
    if name == "lightly":  # whose head runs on masked patches only: 12 of 17 tokens
        expected -= 3 * linear(17 - 12, 16, 48)
    assert counter.get_total_flops() == 4 * expected


def test_another_library_rejects_sizes_that_it_does_not_support() -> None:
    run = tiny("--data.image_size=[16,24]")
    with pytest.raises(UnavailableError, match="square images"):
        prepare_contender("transformers", run, fabric(), noise_batch(run, torch.device("cpu")))


def test_turns_alternate_in_direction() -> None:
    order: list[str] = []
    steps: list[Any] = [TimedStep(lambda name=name: order.append(name)) for name in "abc"]  # type: ignore[misc]
    rounds: list[tuple[int, int]] = []
    take_turns(steps, 2, torch.device("cpu"), lambda done, total: rounds.append((done, total)))
    assert "".join(order) == "abccba" * 2
    assert [len(timed.seconds) for timed in steps] == [2, 2, 2]
    assert rounds == [(k, 4) for k in range(1, 5)]
    assert WARM_UP == 2


def test_quartiles() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)
    assert f"{quartiles([5.0, 1.0, 3.0, 2.0, 4.0]):.1f}" == "3.0 (2.0 to 4.0)"


def test_a_step_out_of_memory_takes_no_more_turns() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError

    steps = [TimedStep(too_large), TimedStep(lambda: None)]
    take_turns(steps, 3, torch.device("cpu"))
    assert [timed.out_of_memory for timed in steps] == [True, False]
    assert len(steps[1].seconds) == 3
