"""What `hardpatch bench` times: one optimizer step of ours, of other libraries' MAE, of Algorithm 1 at its word.

All have the same sizes, mask ratio and uint8 pixels, normalized within the step, and AdamW with its gradient clipped,
fused but for the literal one; masks and weights are each one's own.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hardpatch.bench.literal import Literal
from hardpatch.data.augment import GLOBAL_CROPS
from hardpatch.data.batch import Batch
from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from hardpatch.errors import UserError, did_you_mean
from hardpatch.models.encoder import SIZES
from hardpatch.pretrain import config, recipes
from hardpatch.pretrain.build import image_size, initial_model, target_of
from hardpatch.pretrain.schedule import Schedule, schedule
from hardpatch.pretrain.sections import FastConfig, RunConfig
from hardpatch.pretrain.step import Learner
from hardpatch.train.optimizer import parameter_groups

STEPS = 1000
"""Length of the imagined training; every step is one of its middle, with all patches mined that ever are."""


class Contender(NamedTuple):
    """A method with all that one of its optimizer steps needs."""

    name: str
    run: RunConfig
    """what it does, in our words: its FLOPs are counted by this"""
    step: Callable[[], object]
    """one optimizer step"""


class NotHereError(Exception):
    """A contender cannot run here; says why."""


def contender(name: str, run: RunConfig, fabric: Fabric, batch: Batch) -> Contender:
    """Get one ready.

    Args:
        name: ``hpm`` (the run itself), ``mae`` (its host without mining), ``literal``, ``transformers``, ``lightly``,
            or a recipe, for what that does to be cheap.
        run: the sizes.
        fabric: device and precision.
        batch: of every step.

    Raises:
        NotHereError: where it is not installed, or does not know such sizes.
        UserError: for a name that is none.
    """
    host = replace(run, method=replace(run.method, predicting_loss="none"), fast=FastConfig())
    if name == "hpm":
        return _ours(name, run, fabric, batch)
    if name == "mae":
        return _ours(run.method.host, host, fabric, batch)
    if name == "literal":
        return _literal(run, fabric, batch)
    if name in PEERS:
        return _peer(name, host, fabric, batch)
    known = [*NAMES, *recipes.names()]
    if name in NAMES and name not in recipes.names():
        raise NotHereError("there is no such recipe yet")
    if name in recipes.names():
        cheap = config.build({**config.to_dict(run), "fast": recipes.read(name).get("fast", {})})
        return _ours(name, cheap, fabric, batch)
    raise UserError(f"--contenders: {name} is none of {', '.join(NAMES)} or a recipe{did_you_mean(name, known)}")


def synthetic_batch(run: RunConfig, device: torch.device) -> Batch:
    """Noise, the same for all, so that no loader is timed; what a loader gives for the run's host."""

    def pixels(images: int, size: tuple[int, int]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (images, run.data.channels, *size), dtype=torch.uint8, generator=generator)

    count, ibot = run.batch_size, run.method.host == "ibot"
    local = (run.ibot.local_size, run.ibot.local_size)
    batch = Batch(
        images=pixels(GLOBAL_CROPS * count if ibot else count, image_size(run)),
        indices=torch.arange(count),
        labels=torch.full((count,), -1),
        bad=[],
        local=pixels(run.ibot.local_crops * count, local) if ibot and run.ibot.local_crops else None,
        boxes=torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(count, 1),
        flipped=torch.zeros(count, dtype=torch.bool),
    )
    if device.type != "cuda":
        return batch
    return Batch._make(part.pin_memory() if isinstance(part, Tensor) else part for part in batch)


def values_of_a_step(run: RunConfig) -> Schedule:
    """Those of the middle of a training, with alpha at its end."""
    alpha = 0.0 if run.method.predicting_loss == "none" else run.method.alpha_end
    return schedule(run, STEPS // 2, STEPS)._replace(alpha=alpha, mask_ratio=run.method.mask_ratio)


def _ours(name: str, run: RunConfig, fabric: Fabric, batch: Batch) -> Contender:
    target, outputs = target_of(run, fabric.device)
    model = initial_model(run, *_statistics(run), outputs)
    learner, now = Learner(run, model, fabric, STEPS, target, images=run.batch_size), values_of_a_step(run)
    return Contender(name, run, lambda: learner.train_step(batch, now))


def _literal(run: RunConfig, fabric: Fabric, batch: Batch) -> Contender:
    run = replace(run, fast=FastConfig())
    try:
        model = initial_model(run, *_statistics(run))
        literal = Literal(run, model, fabric.device, autocast=run.train.precision == "bf16")
    except UserError as error:
        raise NotHereError(str(error)) from None
    now = values_of_a_step(run)
    return Contender("literal", run, lambda: literal.train_step(batch, now))


def _peer(name: str, run: RunConfig, fabric: Fabric, batch: Batch) -> Contender:
    """Another library's MAE at the sizes of ``run``, trained as its users would, with what torch has for speed."""
    size, model = image_size(run), run.model
    if run.method.host != "mae" or run.method.frozen or model.layer_scale is not None or size[0] != size[1]:
        raise NotHereError("knows MAE on square images only")
    try:
        network = PEERS[name](run, size[0]).to(fabric.device)
    except ModuleNotFoundError as error:
        raise NotHereError(f"not installed ({error.name}): pip install 'hardpatch[bench]'") from None
    if run.train.compile != "no":
        network.compile(dynamic=False, mode="reduce-overhead" if run.train.compile == "cuda_graphs" else None)
    groups = parameter_groups(network, run.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=values_of_a_step(run).lr, betas=run.optim.betas, fused=True)
    parameters = [parameter for group in groups for parameter in group["params"]]
    mean, std = (torch.tensor(v, device=fabric.device).view(-1, 1, 1) for v in _statistics(run))

    def step() -> None:
        pixels = batch.images.to(fabric.device, non_blocking=True)
        with fabric.autocast():
            loss = network((pixels.float() / 255.0 - mean) / std)
        loss.backward()
        if run.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, run.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Contender(name, run, step)


def _transformers(run: RunConfig, size: int) -> nn.Module:
    """Hugging Face's ViTMAEForPreTraining."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width, depth, heads = _encoder(run)
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    settings = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=size,
        patch_size=run.model.patch_size,
        num_channels=run.data.channels,
        decoder_hidden_size=run.model.decoder_width,
        decoder_num_hidden_layers=run.model.decoder_depth,
        decoder_num_attention_heads=run.model.decoder_heads,
        decoder_intermediate_size=4 * run.model.decoder_width,
        mask_ratio=run.method.mask_ratio,
        norm_pix_loss=run.method.target == "normalized_pixels",
        **attention,
    )

    class Peer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = ViTMAEForPreTraining(settings).train()

        def forward(self, images: Tensor) -> Tensor:
            return self.network(pixel_values=images).loss

    return Peer()


def _lightly(run: RunConfig, size: int) -> nn.Module:
    """lightly's parts, put together as in the MAE example of its documentation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly.models import utils
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    width, depth, heads = _encoder(run)
    patch_size, wide = run.model.patch_size, run.model.decoder_width

    class Peer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vit = VisionTransformer(
                img_size=size,
                patch_size=patch_size,
                in_chans=run.data.channels,
                embed_dim=width,
                depth=depth,
                num_heads=heads,
                num_classes=0,
            )
            self.backbone = MaskedVisionTransformerTIMM(vit=vit)
            self.embed = nn.Linear(width, wide)
            self.decoder = MaskedVisionTransformerDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                embed_dim=wide,
                depth=run.model.decoder_depth,
                num_heads=run.model.decoder_heads,
            )
            self.predict = nn.Linear(wide, patch_size**2 * run.data.channels)
            # Nothing of it takes part: all masked patches are dropped.
            self.backbone.mask_token.requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            shape = len(images), self.backbone.sequence_length
            keep, masked = utils.random_token_mask(shape, mask_ratio=run.method.mask_ratio, device=images.device)
            latent = self.embed(self.backbone.encode(images, idx_keep=keep))
            tokens = utils.repeat_token(self.decoder.mask_token, shape)
            tokens = utils.set_at_index(tokens, keep, latent.type_as(tokens))
            decoded = self.decoder.decode(self.decoder.add_pos_embed(tokens))
            target = utils.get_at_index(utils.patchify(images, patch_size), masked - 1)
            return nn.functional.mse_loss(self.predict(utils.get_at_index(decoded, masked)), target)

    return Peer()


PEERS: dict[str, Callable[[RunConfig, int], nn.Module]] = {"transformers": _transformers, "lightly": _lightly}
"""A network from images ``[B, C, H, W]`` to the loss; takes the run and the side of its images."""

NAMES = ("hpm", "mae", "hpm_fast", *PEERS, "literal")


def _encoder(run: RunConfig) -> tuple[int, int, int]:
    """Width, depth, heads."""
    size, model = SIZES[run.model.size], run.model
    return model.width or size["width"], model.depth or size["depth"], model.heads or size["heads"]


def _statistics(run: RunConfig) -> tuple[Any, Any]:
    """Mean and standard deviation of each channel, any will do."""
    return (IMAGENET_MEAN, IMAGENET_STD) if run.data.channels == 3 else ([0.5], [0.25])
