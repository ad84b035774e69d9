"""Frozen networks whose features the student reconstructs: DINO, CLIP or any ViT of timm (paper, Table 1).

The targets are those of the paper's code and of MILAN: the patch tokens of the last block after the network's final
norm, for CLIP projected to its embedding space. The paper's code gives CLIP the images as normalized for the student;
here every network gets its own normalization.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.errors import UserError, did_you_mean, shown
from hardpatch.pickles import load_pickle

NETWORKS = {
    "dino": "vit_base_patch16_224.dino",
    # OpenAI's weights, which are those of timm/vit_base_patch16_clip_224.openai. That model of timm has GELU, but the
    # weights were trained with QuickGELU.
    "clip": "vit_base_patch16_clip_quickgelu_224.openai",
}
"""Short names of ``--method.frozen``, and their names in timm."""

_UNUSED_MODULES = ("head", "head_dist", "fc_norm", "attn_pool")
"""Modules of timm's networks that come after the patch tokens."""

_UNUSED_KEYS = (*(f"{module}." for module in _UNUSED_MODULES), "mask_token", "rope.")
"""Keys of a weight file that are not needed: of those modules, of pre-training, and of tables that timm computes."""


class FrozenTeacher(nn.Module):
    """A network that is not trained and returns one feature vector for each patch of the student's grid.

    The features are the tokens of timm's ``forward_intermediates(norm=True)`` at the last block, without class,
    register and distillation tokens. timm's CLIP networks (``*_clip_*``, unless their tag has ``ft_in``: fine-tuned to
    classify) have CLIP's projection as ``head``, which is applied to every token. A network that normalizes
    only after pooling (``fc_norm``: some that were fine-tuned to classify) returns the tokens of its last block without
    norm. All other modules after the tokens are dropped.

    Images are resized so that the network's patches are the student's: 224 x 224 at patch size 16 becomes 196 x 196 for
    a network of patch size 14. Its position embeddings are interpolated once, at construction.

    Args:
        network: from ``timm.create_model``, with its weights loaded; it is modified. Create a network with rotary
            positions with ``dynamic_img_size=False``, otherwise timm computes these on the CPU in each call.
        grid: the student's (rows, columns) of patches.
        channels: of the pixels; a network of three channels gets gray images (1) as gray RGB.

    Raises:
        UserError: if the network does not return one token for each patch of this grid, or was trained on other
            channels.
    """

    mean: Tensor
    std: Tensor
    width: int
    """Length of a feature vector, T."""

    def __init__(self, network: nn.Module, grid: tuple[int, int], *, channels: int = 3) -> None:
        super().__init__()
        config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        name = _name(config)
        if channels not in (1, len(config["mean"])):
            raise UserError(
                f"--method.frozen: {name} was trained on images of {len(config['mean'])} channels, got {channels}; "
                "choose another target (--method.target)"
            )
        self.grid, self.channels = grid, channels
        for statistic in ("mean", "std"):  # for pixels in [0, 255]
            values = 255.0 * torch.tensor(config[statistic], dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(statistic, values, persistent=False)

        self.projection: nn.Module = nn.Identity()
        if _projects(network):
            projection: Any = network.head
            projection.bias = None  # CLIP has none; timm's is zero
            self.projection = projection
        for module in _UNUSED_MODULES:
            if isinstance(getattr(network, module, None), nn.Module):
                setattr(network, module, nn.Identity())
        self.network: Any = network
        self.eval()

        # A trial on one image: which networks have these methods, accept this size and return tokens depends on the
        # family and on the version of timm.
        try:
            patch_height, patch_width = _patch_size(network)
            self.size = (grid[0] * patch_height, grid[1] * patch_width)
            if hasattr(network, "set_input_size"):
                network.set_input_size(img_size=self.size)  # type: ignore[operator]
            shape = self(torch.zeros(1, channels, *self.size, dtype=torch.uint8)).shape
            if len(shape) != 3 or shape[1] != grid[0] * grid[1]:
                raise ValueError(f"it returns features of shape {list(shape[1:])}")
        except Exception as error:
            raise UserError(
                f"--method.frozen: expected a ViT that returns one token for each patch of a {grid[0]}x{grid[1]} grid, "
                f"got {name} ({_first_line(error)}); choose a plain ViT, such as {' or '.join(NETWORKS)}"
            ) from error
        self.width = shape[2]
        self.requires_grad_(False)  # last, since resizing the network creates new parameters

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in eval mode, whatever the mode of the module that contains this one."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute features ``[B, N, T]``, patches row by row, of ``pixels`` (uint8 ``[B, C, H, W]``), without gradient.

        Pixels are normalized by the network's own mean and deviation. Under autocast the features have its type.

        Raises:
            ValueError: if the pixels have another type or other channels, or the student's grid does not divide them
                into square patches.
        """
        channels, height, width = pixels.shape[1:]
        rows, columns = self.grid
        if pixels.dtype != torch.uint8 or channels != self.channels or height * columns != width * rows:
            raise ValueError(
                f"pixels: expected uint8 [B, {self.channels}, H, W] of {rows}x{columns} square patches, "
                f"got {pixels.dtype} {list(pixels.shape)}"
            )
        images = pixels.float()
        if (height, width) != self.size:  # as float, since CUDA does not resize uint8
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0.0, 255.0)
        images = (images.expand(-1, self.mean.shape[1], -1, -1) - self.mean) / self.std
        tokens = self.network.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True
        )
        return self.projection(tokens[-1])


def frozen_teacher(
    name: str,
    *,
    weights: str | Path | None = None,
    grid: tuple[int, int],
    channels: int = 3,
    pretrained: bool = True,
) -> FrozenTeacher:
    """Create a network with its weights as a :class:`FrozenTeacher`.

    Args:
        name: ``dino`` or ``clip`` (the paper's, both ViT-B/16), or any ViT of timm, best with its tag.
        weights: a local file in timm's layout: ``.safetensors``, or a ``.pth`` or ``.bin`` of tensors only. Without it
            timm downloads the weights or loads them from its cache.
        grid: the student's (rows, columns) of patches.
        channels: of the pixels.
        pretrained: False for random weights; tests only.

    Raises:
        UserError: if timm has no such network, if its weights cannot be loaded or do not fit, or if
            :class:`FrozenTeacher` cannot use it.
    """
    import timm

    architecture = NETWORKS.get(name, name)
    models = [*timm.list_models(include_tags=False), *timm.list_models(include_tags=True)]
    if architecture not in models:
        raise UserError(
            f"--method.frozen: expected {', '.join(NETWORKS)} or a model of timm, got {shown(repr(name))}"
            f"{did_you_mean(name, [*NETWORKS, *models]) or '; timm.list_models() lists them'}"
        )
    download = pretrained and weights is None
    with torch.random.fork_rng(devices=[]):  # so that a frozen network does not change the student's initial weights
        try:
            network = _create(architecture, pretrained=download)
        except Exception as error:  # the hub and its client raise errors of many kinds
            if not download:
                raise
            raise UserError(
                f"--method.frozen: the weights of {architecture} cannot be loaded ({_first_line(error)}); if this "
                "machine is offline, give a file with --method.frozen_weights"
            ) from error
    if weights is not None:
        _load(network, Path(weights))
    return FrozenTeacher(network, grid, channels=channels)


def _create(architecture: str, *, pretrained: bool) -> nn.Module:
    import timm

    try:  # with a dynamic size timm computes rotary positions on the CPU in each call
        return timm.create_model(architecture, pretrained=pretrained, dynamic_img_size=False)
    except TypeError:  # a network without this argument
        return timm.create_model(architecture, pretrained=pretrained)


def _load(network: nn.Module, path: Path) -> None:
    """Load all weights on which the tokens depend; a missing, unknown or wrongly shaped one is an error."""
    state = _read(path)
    needed = {key: value for key, value in network.state_dict().items() if key.split(".")[0] not in _UNUSED_MODULES}
    if _projects(network):
        needed["head.weight"] = network.state_dict()["head.weight"]
    state = {key: value for key, value in state.items() if key in needed or not key.startswith(_UNUSED_KEYS)}
    mismatches = {
        "missing": sorted(needed.keys() - state.keys()),
        "unknown": sorted(state.keys() - needed.keys()),
        "of another shape": sorted(k for k in needed.keys() & state.keys() if needed[k].shape != state[k].shape),
    }
    if any(mismatches.values()):
        summary = ", ".join(f"{len(keys)} {kind} ({keys[0]})" for kind, keys in mismatches.items() if keys)
        raise UserError(
            f"--method.frozen_weights: {path} does not hold the weights of "
            f"{_name(network.pretrained_cfg)} in timm's layout: {summary}"  # type: ignore[arg-type]
        )
    network.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"--method.frozen_weights: no such file: {path}")
    if path.suffix != ".safetensors":
        content = load_pickle(path, "--method.frozen_weights")
    else:
        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"--method.frozen_weights: {path} cannot be read: {_first_line(error)}") from None
    for key in ("state_dict", "model"):  # under which training scripts save it
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        raise UserError(f"--method.frozen_weights: expected a state_dict of tensors in {path}")
    return content


def _projects(network: nn.Module) -> bool:
    """Return True if ``head`` is CLIP's projection and not a classifier."""
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    clip = "_clip_" in config["architecture"] and "ft_in" not in (config["tag"] or "")
    return clip and isinstance(network.head, nn.Linear)


def _patch_size(network: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of a patch, which becomes one token."""
    embed: Any = getattr(network, "patch_embed", None)
    if hasattr(embed, "feat_ratio"):
        height, width = embed.feat_ratio(as_scalar=False)
        return height, width
    size = getattr(embed, "patch_size", None)
    if size is None:
        raise ValueError("it does not cut images into patches")
    return (size, size) if isinstance(size, int) else size


def _name(config: dict[str, Any]) -> str:
    return f"{config['architecture']}.{config['tag']}" if config["tag"] else config["architecture"]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
