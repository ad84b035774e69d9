"""Mining at a lower price: each saving does what it says, and only that."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.testing import assert_close

from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.methods.masking import random_mask, subsample_masked
from hardpatch.methods.mining import Masking
from hardpatch.methods.teacher import Teacher
from hardpatch.models.block import Block
from hardpatch.models.decoder import Decoder, DecoderEmbed
from hardpatch.patches import to_indices
from hardpatch.pretrain import config
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.sections import RunConfig
from hardpatch.pretrain.step import Learner, Step
from hardpatch.randomness import patch_noise
from tests.small import mae_of

STEPS, GRID = 4, (6, 6)
SMALL = [f"--model.{name}=2" for name in ("heads", "decoder_heads", "decoder_depth")] + [
    "--data.image_size=24",
    "--model.patch_size=4",
    "--model.width=32",
    "--model.depth=3",
    "--model.decoder_width=16",
    "--method.alpha_start=0.5",
]


def small_run(*more: str) -> RunConfig:
    """36 patches, 27 of them masked, 13 of those mined."""
    return config.build({"steps": STEPS, "batch_size": 6}, [*SMALL, *more])


def learner_of(run: RunConfig, images: int = 6) -> Learner:
    return Learner(run, initial_model(run), Fabric(accelerator="cpu", devices=1), STEPS, images=images)


def steps_of(learner: Learner, count: int = STEPS) -> list[Step]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(6, -1)
    labels, flipped = torch.full((6,), -1), torch.zeros(6, dtype=torch.bool)
    batch = Batch(images, torch.arange(6), labels, [], boxes=boxes, flipped=flipped)
    return [learner.train_step(batch, schedule(learner.run, learner.step, STEPS)) for _ in range(count)]


def images() -> Tensor:
    return torch.randn(6, 3, 24, 24, generator=torch.Generator().manual_seed(1))


OPTIONS = [
    ["--fast.decoder=cross"],
    ["--fast.prediction_ratio=0.34"],
    ["--fast.predictor_depth=1"],
    ["--fast.shared_blocks=1"],
    ["--fast.shared_blocks=-1", "--fast.prediction_ratio=0.75", "--fast.remember=true"],
    ["--fast.teacher_resolution=0.5"],
    ["--fast.remember=true"],
    [
        "--fast.decoder=cross",
        "--fast.prediction_ratio=0.34",
        "--fast.teacher_resolution=0.5",
    ],
    ["--fast.decoder=cross", "--fast.prediction_ratio=0.5", "--fast.remember=true", "--optim.accumulation_steps=2"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_every_weight_learns(options: list[str]) -> None:
    learner = learner_of(small_run(*options))
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    losses = [step.losses.loss.item() for step in steps_of(learner)]
    assert all(0.0 < loss < 10.0 for loss in losses)
    still = [name for name, p in learner.model.named_parameters() if torch.equal(p, before[name])]
    assert still == []


@torch.no_grad()
def test_cross_attention_is_attention_that_sees_visible_tokens_only() -> None:
    torch.manual_seed(0)
    embed = DecoderEmbed(latent_width=32, width=16, grid=GRID)
    decoder = Decoder(width=16, depth=2, heads=2, outputs=48, cross=True)
    mask = to_indices(random_mask(torch.rand(3, 36), 27))
    tokens = embed(torch.randn(3, 10, 32), mask)
    x = tokens.of_asked(tokens.parts[1])
    for block in decoder.blocks:
        assert isinstance(block, Block)
        # the block's own attention over both kinds of tokens, with all but the visible ones hidden from it
        both = torch.cat([tokens.seen, x], dim=1)
        bias = torch.zeros(1, 1, 37, 37)
        bias[..., 10:] = -torch.inf
        x = block(both, bias)[:, 10:]
    assert_close(decoder(tokens), decoder.head(decoder.norm(x)))
    everything = decoder(embed(torch.randn(3, 37, 32)))  # as the teacher asks: every patch, all of them visible
    assert everything.shape == (3, 36, 48)


def test_some_of_the_masked_patches_are_asked_for() -> None:
    noise = torch.rand(200, 72, generator=torch.Generator().manual_seed(0))
    masking = Masking(GRID, prediction_ratio=1 / 3)
    assert masking.noise_count == 72
    everything = Masking(GRID).mine(noise[:, :36], mask_ratio=0.75, alpha=0.0).mask
    asked = masking.mine(noise, mask_ratio=0.75, alpha=0.0).mask
    assert torch.equal(asked.visible, everything.visible)  # what the encoder sees stays the same
    assert asked.masked.shape == (200, 9)
    assert (asked.masked.diff(dim=1) > 0).all()
    among = everything.masked.unsqueeze(2) == asked.masked.unsqueeze(1)  # [200, 27, 9]
    assert among.any(1).all()
    places = among.any(2).float().mean(0)  # [27]
    assert ((places - 1 / 3).abs() < 0.15).all()  # each place is as likely: 200 draws, 0.15 is 4.5 deviations
    assert subsample_masked(everything.masked, noise, 0.001).shape == (200, 1)


@pytest.mark.parametrize("shared", [1, -1])
@torch.no_grad()
def test_a_shared_trunk_is_run_once_and_the_teacher_keeps_it(shared: int) -> None:
    learner = learner_of(small_run(f"--fast.shared_blocks={shared}"))
    model = learner.model
    assert learner.teacher is not None
    assert model.predictor is not None
    host = mae_of(model)
    assert (len(host.shared), len(host.reconstructor.blocks), len(model.predictor.blocks)) == (1, 1, 1)
    names = {name for name, _ in learner.teacher.network.named_parameters()}
    assert any(name.startswith("host.shared.0.") for name in names)
    assert not any(name.startswith("host.reconstructor.") for name in names)
    # one trunk and one branch are a decoder of two blocks
    mask = to_indices(random_mask(torch.rand(6, 36), 27))
    latent = model.encode(images(), mask)
    whole = Decoder(width=16, depth=2, heads=2, outputs=48)
    whole.load_state_dict(
        {f"blocks.0.{name}": value for name, value in host.shared[0].state_dict().items()}
        | {f"blocks.1.{name}": value for name, value in host.reconstructor.blocks[0].state_dict().items()}
        | {name: value for name, value in host.reconstructor.state_dict().items() if not name.startswith("blocks")}
    )
    assert_close(model.reconstruct(latent, mask), whole(host.decoder_embed(latent, mask)))


@torch.no_grad()
def test_a_teacher_at_half_resolution_gives_a_map_of_the_whole() -> None:
    model = initial_model(small_run())
    half, whole = Teacher(model, 0.5), Teacher(model)
    flat = torch.ones(2, 3, 24, 24) * torch.tensor([0.3, -1.0]).view(2, 1, 1, 1)
    small = whole.predict_loss(flat[:, :, :12, :12])  # [B, 9]: the mean over 2 x 2 pixels changes nothing here
    found = half(flat).difficulty
    assert found is not None
    assert found.shape == (2, 36)
    # the corners of the map are the corners of the small one
    assert_close(found.view(2, 6, 6)[:, ::5, ::5], small.view(2, 3, 3)[:, ::2, ::2])
    assert_close(found.mean(1), small.mean(1), atol=0.05, rtol=0.05)


def test_what_is_remembered_is_mined_without_a_teacher() -> None:
    learner = learner_of(small_run("--fast.remember=true"))
    assert learner.teacher is None
    assert learner.mining.memory is not None
    noise = patch_noise(0, 0, torch.arange(6), 37)[:, :36]
    first, second, *_ = steps_of(learner, 2)
    assert torch.equal(first.mined.mask.masked, to_indices(random_mask(noise, 27)).masked)  # nothing is known yet
    assert second.mined.mined is not None
    assert first.losses.predicted is not None
    # the hardest of those that were masked in the first step are masked again
    hardest = first.mined.mask.masked.gather(1, first.losses.predicted.topk(13, dim=1).indices)
    again = (second.mined.mask.masked.unsqueeze(1) == hardest.unsqueeze(2)).any(2)
    assert again.float().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--method.host=simmim", "--fast.decoder=cross"], "fast.decoder: only for a host that drops patches"),
        (["--method.predicting_loss=none", "--fast.remember=true"], "fast.remember: there is no loss predictor"),
        (["--fast.shared_blocks=2"], "fast.shared_blocks: expected fewer than the reconstructor's 2 blocks, 0 to 1 or"),
        (["--fast.shared_blocks=-3"], "-1 to -2 from the last, got -3"),
        (["--fast.shared_blocks=1", "--fast.decoder=cross"], "fast.shared_blocks: not with fast.decoder cross"),
        (["--fast.teacher_resolution=1.5"], "fast.teacher_resolution: expected a factor up to 1"),
        (["--fast.teacher_every=2"], "fast.teacher_every: unknown argument; it is gone, the value is always 1"),
        (["--method.target=teacher", "--fast.remember=true"], "fast.remember: target teacher"),
        (["--fast.remember=true", "--data.crops=2"], "fast.remember: two crops of an image"),
        (["--fast.prediction_ratio=0"], "fast.prediction_ratio: expected a number above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(options: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        learner_of(small_run(*options))
