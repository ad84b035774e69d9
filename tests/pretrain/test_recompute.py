"""train.checkpoint_activations: the same gradients to the bit, out of less that is kept. Compiled: test_compile.py."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.bench.contenders import noise_batch
from hardpatch.pretrain import config
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner

CPU = torch.device("cpu")
RUNS: dict[str, list[str]] = {
    "mae": [],
    "simmim": ["--method.host=simmim", "--model.positions=relative", "--model.layer_scale=0.1"],
    "ibot": ["--method.host=ibot", "--ibot.local_size=8", "--ibot.outputs=16", "--ibot.head_hidden=8"],
    "cross": ["--fast.decoder=cross"],
}


def learner(name: str, recompute: bool) -> Learner:
    settings = ["--data.image_size=32", "--model.patch_size=4", "--model.width=32", "--model.depth=3"]
    settings += ["--model.heads=2", "--model.decoder_width=32", "--model.decoder_depth=3", "--model.decoder_heads=2"]
    settings += ["--model.drop_path=0.5", "--method.alpha_start=0.5", "--optim.lr=1e-3"]
    settings += [f"--train.checkpoint_activations={str(recompute).lower()}", *RUNS[name]]
    run = config.build({"steps": 4, "batch_size": 4}, settings)
    return Learner(run, initial_model(run), Fabric(accelerator="cpu", devices=1), 4)


def gradients(made: Learner) -> tuple[list[Tensor], int]:
    """Of a step, and the bytes that its forward pass keeps for them, without the inputs of blocks that start again."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made.gradients(noise_batch(made.run, CPU), schedule(made.run, 0, 4), 1)
    return [p.grad for p in made.model.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("name", RUNS)
def test_equal_gradients_out_of_less_memory(name: str) -> None:
    (plain, kept), (again, kept_again) = (gradients(learner(name, recompute)) for recompute in (False, True))
    assert len(plain) == len(again) > 50
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    assert kept_again < 0.4 * kept
