"""Settings of section ``fast``: each saving has the documented effect and no other."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.testing import assert_close

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.methods.masking import random_mask, subsample_masked
from hardpatch.methods.mining import Masking
from hardpatch.methods.teacher import Teacher
from hardpatch.models.block import Block
from hardpatch.models.decoder import Decoder, DecoderEmbed
from hardpatch.patches import to_indices
from hardpatch.pretrain.schedule import schedule
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


def small_run(*options: str) -> RunConfig:
    """Configure a run with 36 patches, 27 of them masked and 13 of these mined."""
    return config.build({"steps": STEPS, "batch_size": 6}, [*SMALL, *options])


def learner_of(run: RunConfig, images: int = 6) -> Learner:
    return Learner(run, initial_model(run), Fabric(accelerator="cpu", devices=1), STEPS, images=images)


def train_steps(learner: Learner, count: int = STEPS) -> list[Step]:
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
def test_every_weight_is_trained(options: list[str]) -> None:
    learner = learner_of(small_run(*options))
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    losses = [step.losses.loss.item() for step in train_steps(learner)]
    assert all(0.0 < loss < 10.0 for loss in losses)
    unchanged = [name for name, p in learner.model.named_parameters() if torch.equal(p, before[name])]
    assert unchanged == []


@torch.no_grad()
def test_cross_attention_is_attention_to_visible_tokens_only() -> None:
    torch.manual_seed(0)
    embed = DecoderEmbed(latent_width=32, width=16, grid=GRID)
    decoder = Decoder(width=16, depth=2, heads=2, outputs=48, cross=True)
    mask = to_indices(random_mask(torch.rand(3, 36), 27))
    tokens = embed(torch.randn(3, 10, 32), mask)
    x = tokens.query_tokens
    for block in decoder.blocks:
        assert isinstance(block, Block)
        # the block's own attention over both kinds of tokens, masked so that only visible ones are attended to
        both = torch.cat([tokens.sequence, x], dim=1)
        bias = torch.zeros(1, 1, 37, 37)
        bias[..., 10:] = -torch.inf
        x = block(both, bias)[:, 10:]
    assert_close(decoder(tokens), decoder.head(decoder.norm(x)))
    whole_images = decoder(embed(torch.randn(3, 37, 32)))  # as in the teacher: every patch is queried and visible
    assert whole_images.shape == (3, 36, 48)


def test_a_random_share_of_the_masked_patches_is_reconstructed() -> None:
    noise = torch.rand(200, 72, generator=torch.Generator().manual_seed(0))
    masking = Masking(GRID, prediction_ratio=1 / 3)
    assert masking.noise_count == 72
    complete = Masking(GRID).mine_mask(noise[:, :36], mask_ratio=0.75, alpha=0.0).mask
    subset = masking.mine_mask(noise, mask_ratio=0.75, alpha=0.0).mask
    assert torch.equal(subset.visible, complete.visible)  # what the encoder sees stays the same
    assert subset.masked.shape == (200, 9)
    assert (subset.masked.diff(dim=1) > 0).all()
    same_patch = complete.masked.unsqueeze(2) == subset.masked.unsqueeze(1)  # [200, 27, 9]
    assert same_patch.any(1).all()
    frequency = same_patch.any(2).float().mean(0)  # [27]
    # all masked patches are equally likely: with 200 draws 0.15 is 4.5 standard deviations
    assert ((frequency - 1 / 3).abs() < 0.15).all()
    assert subsample_masked(complete.masked, noise, 0.001).shape == (200, 1)


@pytest.mark.parametrize("shared", [1, -1])
@torch.no_grad()
def test_shared_blocks_are_part_of_both_decoders_and_of_the_teacher(shared: int) -> None:
    learner = learner_of(small_run(f"--fast.shared_blocks={shared}"))
    model = learner.model
    assert learner.teacher is not None
    assert model.predictor is not None
    host = mae_of(model)
    assert (len(host.shared), len(host.reconstructor.blocks), len(model.predictor.blocks)) == (1, 1, 1)
    names = {name for name, _ in learner.teacher.network.named_parameters()}
    assert any(name.startswith("host.shared.0.") for name in names)
    assert not any(name.startswith("host.reconstructor.") for name in names)
    # the shared block and the reconstructor's own block make a decoder of two blocks
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
def test_a_teacher_at_half_resolution_predicts_every_patch() -> None:
    model = initial_model(small_run())
    half, whole = Teacher(model, 0.5), Teacher(model)
    flat = torch.ones(2, 3, 24, 24) * torch.tensor([0.3, -1.0]).view(2, 1, 1, 1)
    small = whole.predict_loss(flat[:, :, :12, :12])  # [B, 9]: the mean over 2 x 2 pixels changes nothing here
    enlarged = half(flat).difficulty
    assert enlarged is not None
    assert enlarged.shape == (2, 36)
    # the corners of the enlarged map are those of the small map
    assert_close(enlarged.view(2, 6, 6)[:, ::5, ::5], small.view(2, 3, 3)[:, ::2, ::2])
    assert_close(enlarged.mean(1), small.mean(1), atol=0.05, rtol=0.05)


def test_difficulty_memory_mines_without_a_teacher() -> None:
    learner = learner_of(small_run("--fast.remember=true"))
    assert learner.teacher is None
    assert learner.mining.memory is not None
    noise = patch_noise(0, 0, torch.arange(6), 37)[:, :36]
    first, second, *_ = train_steps(learner, 2)
    assert torch.equal(first.mined.mask.masked, to_indices(random_mask(noise, 27)).masked)  # the memory is empty
    assert second.mined.mined is not None
    assert first.losses.predicted is not None
    # the hardest patches of the first step are masked again
    hardest = first.mined.mask.masked.gather(1, first.losses.predicted.topk(13, dim=1).indices)
    again = (second.mined.mask.masked.unsqueeze(1) == hardest.unsqueeze(2)).any(2)
    assert again.float().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method.host=simmim", "--fast.decoder=cross"], "fast.decoder: only for a host that drops patches"),
        (["--method.predicting_loss=none", "--fast.remember=true"], "fast.remember: there is no loss predictor"),
        (["--fast.shared_blocks=2"], "fast.shared_blocks: expected fewer than the reconstructor's 2 blocks, 0 to 1 or"),
        (["--fast.shared_blocks=-3"], "-1 to -2 from the last, got -3"),
        (["--fast.shared_blocks=1", "--fast.decoder=cross"], "fast.shared_blocks: not with fast.decoder cross"),
        (["--fast.teacher_resolution=1.5"], "fast.teacher_resolution: expected a number above 0, up to 1"),
        (["--fast.teacher_every=2"], "fast.teacher_every: unknown argument; it is gone, the value is always 1"),
        (["--method.target=teacher", "--fast.remember=true"], "fast.remember: target teacher"),
        (["--fast.remember=true", "--data.crops=2"], "fast.remember: two crops of an image"),
        (["--fast.prediction_ratio=0"], "fast.prediction_ratio: expected a number above 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learner_of(small_run(*options))
