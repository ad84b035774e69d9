"""Activation checkpointing gives the same gradients to the bit and saves fewer activations.

Compiled steps with it are in test_compile.py.
"""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.bench.contenders import noise_batch
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner

CPU = torch.device("cpu")
RUNS: dict[str, list[str]] = {
    "mae": [],
    "simmim": ["--method.host=simmim", "--model.positions=relative", "--model.layer_scale=0.1"],
    "ibot": ["--method.host=ibot", "--ibot.local_size=8", "--ibot.outputs=16", "--ibot.head_hidden=8"],
    "cross": ["--fast.decoder=cross"],
}


def make_learner(name: str, recompute: bool) -> Learner:
    settings = ["--data.image_size=32", "--model.patch_size=4", "--model.width=32", "--model.depth=3"]
    settings += ["--model.heads=2", "--model.decoder_width=32", "--model.decoder_depth=3", "--model.decoder_heads=2"]
    settings += ["--model.drop_path=0.5", "--method.alpha_start=0.5", "--optim.lr=1e-3"]
    settings += [f"--train.checkpoint_activations={str(recompute).lower()}", *RUNS[name]]
    run = config.build({"steps": 4, "batch_size": 4}, settings)
    return Learner(run, initial_model(run), Fabric(accelerator="cpu", devices=1), 4)


def gradients(learner: Learner) -> tuple[list[Tensor], int]:
    """Return the gradients of a step, and the bytes that autograd saves for them in the forward pass.

    The inputs of blocks that are recomputed are not counted.
    """
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        learner.compute_gradients(noise_batch(learner.run, CPU), schedule(learner.run, 0, 4), accumulation_steps=1)
    return [p.grad for p in learner.model.parameters() if p.grad is not None], sum(saved.values())


@pytest.mark.parametrize("name", RUNS)
def test_equal_gradients_with_less_memory(name: str) -> None:
    (plain, plain_bytes), (recomputed, recomputed_bytes) = (
        gradients(make_learner(name, recompute)) for recompute in (False, True)
    )
    assert len(plain) == len(recomputed) > 50
    assert all(map(torch.equal, plain, recomputed))
    assert recomputed_bytes < 0.4 * plain_bytes
