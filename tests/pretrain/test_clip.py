import pytest
import torch
from lightning_fabric import Fabric

from hardpatch.configuration.build import initial_model
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner
from tests.bench.test_literal import STEPS, batches, small_run


@pytest.mark.parametrize(("limit", "shortened"), [(1e-3, True), (1e3, False)])
def test_the_gradient_is_clipped_as_torch_does_it(limit: float, shortened: bool) -> None:
    run = small_run(f"--optim.clip={limit}")
    learner = Learner(run, initial_model(run), Fabric(accelerator="cpu", devices=1), STEPS)
    learner.compute_gradients(batches(run)[0], schedule(run, 0, STEPS), accumulation_steps=1)
    weights = [weight for group in learner.adamw.param_groups for weight in group["params"]]
    copies = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    for copy, weight in zip(copies, weights, strict=True):
        copy.grad = None if weight.grad is None else weight.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(copies, limit)
    assert torch.equal(learner.bad_steps.clip(limit), norm)
    assert bool(norm > limit) == shortened
    for copy, weight in zip(copies, weights, strict=True):
        assert (copy.grad is None) == (weight.grad is None)
        assert copy.grad is None or torch.equal(copy.grad, weight.grad)
