"""Frozen networks whose features the student reconstructs: DINO, CLIP or any ViT of timm (paper, Table 1).

The targets are those of the paper's code and of MILAN: the patch tokens of the last block after the network's final
norm, for CLIP projected into the space that it shares with text. The paper's code shows CLIP images normalized for the
student; here every network sees its own normalization.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.errors import UserError, did_you_mean
from hardpatch.pickles import load_pickle

NETWORKS = {
    "dino": "vit_base_patch16_224.dino",
    # OpenAI's weights (those of timm/vit_base_patch16_clip_224.openai) in the network that they were trained in: timm's
    # model of that name has GELU where CLIP has QuickGELU.
    "clip": "vit_base_patch16_clip_quickgelu_224.openai",
}
"""Short names of ``--method.frozen``, and what timm calls them."""

_BEHIND_TOKENS = ("head", "head_dist", "fc_norm", "attn_pool")
"""Parts of timm's networks that come after the patch tokens."""

_PASSED_OVER = (*(f"{part}." for part in _BEHIND_TOKENS), "mask_token", "rope.")
"""Keys that a file may hold without need: of those parts, of pre-training, and of tables that timm computes anew."""


class FrozenTeacher(nn.Module):
    """One feature vector for every patch of the student's grid, from a network that is never trained.

    The tokens are those of timm's ``forward_intermediates(norm=True)`` at the last block, without the class, register
    and distillation tokens. timm's CLIP networks (``*_clip_*``, unless a tag with ``ft_in`` says that they were
    fine-tuned to classify) keep CLIP's projection as ``head``: it is applied to every token. A network that normalizes
    only after pooling (``fc_norm``: some that were fine-tuned to classify) gives its tokens as its last block leaves
    them. Everything else behind the tokens is dropped.

    The network sees the image at the size at which its own patches are the student's: 224 x 224 at patch size 16
    becomes 196 x 196 for a network of patch size 14. Its position embeddings are interpolated once, here.

    Args:
        network: made by ``timm.create_model`` with its weights already loaded; taken over and changed. One with
            rotary positions should be made with ``dynamic_img_size=False``, otherwise timm builds these on the CPU
            at every call.
        grid: the student's (rows, columns) of patches.
        channels: of the pixels that will come; gray images (1) are shown to a network of three channels as gray RGB.

    Raises:
        UserError: if the network does not give one token a patch at this grid, or was trained on other channels.
    """

    mean: Tensor
    std: Tensor
    width: int
    """Features a patch, T."""

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
        for statistic in ("mean", "std"):  # in units of a pixel, 0 to 255
            values = 255.0 * torch.tensor(config[statistic], dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(statistic, values, persistent=False)

        self.projection: nn.Module = nn.Identity()
        if _projects(network):
            projection: Any = network.head
            projection.bias = None  # CLIP has none; timm's is zero
            self.projection = projection
        for part in _BEHIND_TOKENS:
            if isinstance(getattr(network, part, None), nn.Module):
                setattr(network, part, nn.Identity())
        self.network: Any = network
        self.eval()

        # Asked once on an image: whether a network has this method, takes this size and answers in tokens differs by
        # family and by version of timm.
        try:
            patch_height, patch_width = _patch_size(network)
            self.size = (grid[0] * patch_height, grid[1] * patch_width)
            if hasattr(network, "set_input_size"):
                network.set_input_size(img_size=self.size)  # type: ignore[operator]
            shape = self(torch.zeros(1, channels, *self.size, dtype=torch.uint8)).shape
            if len(shape) != 3 or shape[1] != grid[0] * grid[1]:
                raise ValueError(f"it gives features of shape {list(shape[1:])}")
        except Exception as error:
            raise UserError(
                f"--method.frozen: expected a ViT that gives one token for each patch of a {grid[0]}x{grid[1]} grid, "
                f"got {name} ({_first_line(error)}); choose a plain ViT, such as {' or '.join(NETWORKS)}"
            ) from error
        self.width = shape[2]
        self.requires_grad_(False)  # last: a network that was resized has new parameters

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in eval mode, whatever is asked of the module that holds it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``[B, N, T]`` of every patch, row by row, of ``pixels`` (uint8 ``[B, C, H, W]``), without gradient.

        They are normalized by the network's own mean and deviation. Under autocast the features come in its type.

        Raises:
            ValueError: if the pixels are of another type, have other channels, or cannot be cut into square patches of
                the student's grid.
        """
        channels, height, width = pixels.shape[1:]
        rows, columns = self.grid
        if pixels.dtype != torch.uint8 or channels != self.channels or height * columns != width * rows:
            raise ValueError(
                f"pixels: expected uint8 [B, {self.channels}, H, W] of {rows}x{columns} square patches, "
                f"got {pixels.dtype} {list(pixels.shape)}"
            )
        images = pixels.float()
        if (height, width) != self.size:  # not as uint8, which CUDA does not resize
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
    """The network of this name with its weights, ready to give targets.

    Args:
        name: ``dino`` or ``clip`` (the paper's, both ViT-B/16), or any ViT that timm knows, best with its tag.
        weights: a local file in timm's layout: ``.safetensors``, or a ``.pth`` or ``.bin`` of tensors only. Without it
            timm downloads the weights, or finds them where it did so before.
        grid: the student's (rows, columns) of patches.
        channels: of the pixels.
        pretrained: False for random weights; tests only.

    Raises:
        UserError: if timm has no such network, if its weights cannot be had or do not fit, or if it is of no use as a
            target (see :class:`FrozenTeacher`).
    """
    import timm

    architecture = NETWORKS.get(name, name)
    known = [*timm.list_models(include_tags=False), *timm.list_models(include_tags=True)]
    if architecture not in known:
        raise UserError(
            f"--method.frozen: expected {', '.join(NETWORKS)} or a model of timm, got {name!r}"
            f"{did_you_mean(name, [*NETWORKS, *known]) or '; timm.list_models() names them'}"
        )
    download = pretrained and weights is None
    with torch.random.fork_rng(devices=[]):  # the student starts the same with or without a frozen network
        try:
            network = _create(architecture, pretrained=download)
        except Exception as error:  # whatever the network, the hub and its client may raise
            if not download:
                raise
            raise UserError(
                f"--method.frozen: no weights of {architecture} could be had ({_first_line(error)}); where there is no "
                "network, give a file with --method.frozen_weights"
            ) from error
    if weights is not None:
        _load(network, Path(weights))
    return FrozenTeacher(network, grid, channels=channels)


def _create(architecture: str, *, pretrained: bool) -> nn.Module:
    import timm

    try:  # of one size: with a dynamic size rotary positions are made on the CPU at every call
        return timm.create_model(architecture, pretrained=pretrained, dynamic_img_size=False)
    except TypeError:  # knows no dynamic size
        return timm.create_model(architecture, pretrained=pretrained)


def _load(network: nn.Module, path: Path) -> None:
    """Load the weights that the tokens need, all of them and strictly."""
    state = _read(path)
    needed = {key: value for key, value in network.state_dict().items() if key.split(".")[0] not in _BEHIND_TOKENS}
    if _projects(network):
        needed["head.weight"] = network.state_dict()["head.weight"]
    found = {key: value for key, value in state.items() if key in needed or not key.startswith(_PASSED_OVER)}
    wrong = {
        "missing": sorted(needed.keys() - found.keys()),
        "unknown": sorted(found.keys() - needed.keys()),
        "of another shape": sorted(k for k in needed.keys() & found.keys() if needed[k].shape != found[k].shape),
    }
    if any(wrong.values()):
        said = ", ".join(f"{len(keys)} {what} ({keys[0]})" for what, keys in wrong.items() if keys)
        raise UserError(
            f"--method.frozen_weights: {path} does not hold the weights of "
            f"{_name(network.pretrained_cfg)} in timm's layout: {said}"  # type: ignore[arg-type]
        )
    network.load_state_dict(found, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
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
    for wrapped in ("state_dict", "model"):  # as training scripts save it
        if isinstance(content, dict) and isinstance(content.get(wrapped), dict):
            content = content[wrapped]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        raise UserError(f"--method.frozen_weights: expected a state_dict of tensors in {path}")
    return content


def _projects(network: nn.Module) -> bool:
    """Whether ``head`` is CLIP's projection and no classifier."""
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    clip = "_clip_" in config["architecture"] and "ft_in" not in (config["tag"] or "")
    return clip and isinstance(network.head, nn.Linear)


def _patch_size(network: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of what becomes one token."""
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
