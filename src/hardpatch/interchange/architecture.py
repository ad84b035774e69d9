"""Architecture of an encoder whose weights come from another library: from its tensors, and from what a file says."""

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hardpatch.choices import SIZES
from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from hardpatch.errors import UserError, shown
from hardpatch.interchange.layouts import Layout
from hardpatch.interchange.tensors import CONFIGS
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import build_encoder, mlp_ratio
from hardpatch.models.positions import sincos_positions
from hardpatch.models.variant import NORM_EPS, Variant
from hardpatch.weights import check_normalization, described, parse_metadata

log = logging.getLogger("hardpatch")
_said: set[str] = set()
LARGEST = 1024
"""Heads of attention"""
_HEADS = {shape["width"]: shape["heads"] for shape in SIZES.values()}
_EPS = {"Hugging Face's names": 1e-12, "Hugging Face's names of CLIP": 1e-5, "OpenAI's names of CLIP": 1e-5}
"""Added to the variance in norms, in the libraries' defaults, where that is not timm's"""


@dataclass
class Facts:
    """Facts about a network that a file, or the user, says; None where nothing is said."""

    heads: int | None = None
    image_size: tuple[int, int] | None = None
    norm_eps: float | None = None
    activation: str | None = None
    rope_theta: float | None = None
    decoder_heads: int | None = None
    normalize_pixels: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    kind: str = ""
    """of the network, as the file calls it"""
    guesses: list[str] = field(default_factory=list)
    """lines about what was guessed, each with the option that corrects it"""

    def normalization(self, channels: int, file: Path) -> tuple[list[float], list[float]]:
        """Return mean and deviation of pixels in [0, 1]: by default ImageNet's, or 0.5 if there are not 3 channels.

        Raises:
            UserError: if what is said are no such numbers.
        """
        usual = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ([0.5] * channels, [0.5] * channels)
        values = {"mean": self.mean or usual[0], "std": self.std or usual[1]}
        with described(file):
            check_normalization(values)
        if len(values["mean"]) != channels:
            raise UserError(f"RUN: {file} has {channels} channels, its mean is said for {len(values['mean'])}")
        return list(values["mean"]), list(values["std"])

    def say_guesses(self, file: Path) -> None:
        """Log what was guessed, once for each file."""
        line = f"{file} does not say: {'; '.join(self.guesses)}"
        if self.guesses and line not in _said:
            _said.add(line)
            log.warning("%s", line)


def facts_beside(file: Path) -> Facts:
    """Read ``config.json`` and ``preprocessor_config.json`` of Hugging Face or timm beside a weights file, if any."""
    config, preprocessor = (_json(file.with_name(name)) for name in CONFIGS)
    vision = config.get("vision_config")  # of CLIP
    config = vision if isinstance(vision, dict) else config
    size, rope = config.get("image_size"), config.get("rope_parameters")
    timm = config.get("pretrained_cfg")
    if isinstance(timm, dict):
        shape = timm.get("input_size")
        size = shape[1:] if isinstance(shape, list) else None
        preprocessor = {f"image_{name}": timm.get(name) for name in ("mean", "std")}
        if "quickgelu" in str(config.get("architecture")):
            config["hidden_act"] = "quick_gelu"
    names = config.get("architectures")
    facts = Facts(
        heads=config.get("num_attention_heads"),
        image_size=(size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else size,
        norm_eps=config.get("layer_norm_eps"),
        activation=config.get("hidden_act"),
        rope_theta=rope.get("rope_theta") if isinstance(rope, dict) else config.get("rope_theta"),
        decoder_heads=config.get("decoder_num_attention_heads"),
        normalize_pixels=config.get("norm_pix_loss") is True,
        mean=preprocessor.get("image_mean"),
        std=preprocessor.get("image_std"),
        kind=str(names[0] if isinstance(names, list) and names else config.get("architecture", "")),
    )
    _check(facts, file)
    return facts


def _check(facts: Facts, file: Path) -> None:
    """Refuse values of another type, or out of range.

    Raises:
        UserError: names the first one.
    """
    sides = facts.image_size
    expected: dict[str, tuple[Any, Callable[[Any], bool]]] = {
        "num_attention_heads": (facts.heads, lambda value: type(value) is int and 0 < value <= LARGEST),
        "decoder_num_attention_heads": (facts.decoder_heads, lambda value: type(value) is int and 0 < value <= LARGEST),
        "image_size": (sides, lambda value: len(value) == 2 and all(type(side) is int and side > 0 for side in value)),
        "layer_norm_eps": (facts.norm_eps, lambda value: type(value) is float and 0.0 <= value < 1.0),
        "rope_theta": (facts.rope_theta, lambda value: type(value) in (int, float) and 0.0 < value < math.inf),
    }
    for name, (value, holds) in expected.items():
        if value is not None and not (isinstance(value, int | float | tuple) and holds(value)):
            raise UserError(f"RUN: {file.with_name(CONFIGS[0])}: {name} cannot be {shown(value)}")


def _json(path: Path) -> dict[str, Any]:
    """Read an object; empty if there is no such file.

    Raises:
        UserError: if it is something else.
    """
    if not path.is_file():
        return {}
    return parse_metadata(path.read_text(encoding="utf-8", errors="replace"), path)


def to_say(name: str) -> str:
    """Return how a user says what a file does not."""
    options = {"heads": "--heads N", "decoder_heads": "--decoder_heads N", "trained_size": "--trained_size H W"}
    return f"{options[name]} says otherwise"


def infer_settings(layout: Layout, facts: Facts, file: Path) -> dict[str, Any]:
    """Return the settings for :func:`~hardpatch.models.encoder_settings.build_encoder`.

    Raises:
        UserError: if the tensors are not those of such an encoder.
    """
    state = layout.tensors
    for name in ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight"):
        if name not in state:
            raise UserError(f"RUN: expected a ViT with class token, {file} ({layout.name}) has no {name}")
    kernel = state["patch_embed.proj.weight"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise UserError(f"RUN: {file}: expected square patches [D, C, p, p], got {list(kernel.shape)}")
    width, channels, patch_size, _ = kernel.shape
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    relative = "relative_bias.table" in state or "blocks.0.relative_bias.table" in state
    rotary = "pos_embed" not in state and not relative
    if rotary and not (facts.rope_theta or "registers" in state or any("rope" in name for name in layout.left_out)):
        raise UserError(f"RUN: {file} ({layout.name}) has no positions, and is not DINOv3's, whose are rotary")
    if re.search(r"_rope|vit_pe_|eva02", facts.kind) or ("norm_pre.weight" in state and layout.pools_by_attention):
        kind = facts.kind or "a network"
        raise UserError(f"RUN: {file} is {kind} with rotary positions of another kind than DINOv3's")
    heads = _heads(state, facts, width)
    rows, columns = _grid(state, facts, patch_size, width, file)
    hidden = state["blocks.0.mlp.fc2.weight"].shape[1]
    swiglu = state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * hidden
    if swiglu and facts.activation not in (None, "silu", "swiglu"):
        known = facts.kind.startswith("Dinov2")  # which has SwiGLU whatever its hidden_act
        if not known:
            raise UserError(f"RUN: {file} has a gated MLP with {facts.activation}; expected SwiGLU (silu)")
    pre_norm = "norm_pre.weight" in state
    if pre_norm and facts.activation is None:
        facts.guesses.append(
            f'QuickGELU, as OpenAI\'s CLIP has; a {CONFIGS[0]} beside it says otherwise: {{"hidden_act": "gelu"}}'
        )
    quick = facts.activation == "quick_gelu" or (pre_norm and facts.activation is None)
    variant = Variant(
        registers=state["registers"].shape[1] if "registers" in state else 0,
        rope_theta=(facts.rope_theta or 100.0) if rotary else None,
        pre_norm=pre_norm,
        final_norm="norm.weight" in state,
        patch_bias="patch_embed.proj.bias" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        activation="swiglu" if swiglu else "quick_gelu" if quick else "gelu",
        norm_eps=facts.norm_eps or (1e-5 if rotary or pre_norm else _EPS.get(layout.name, NORM_EPS)),
    )
    return {
        "image_size": [rows * patch_size, columns * patch_size],
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": mlp_ratio(hidden, width),
        "positions": "relative" if relative else None if rotary else "learned",
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in state else None,
        **({"block_bias_grid": [rows, columns]} if "blocks.0.relative_bias.table" in state else {}),
        **({"variant": changes} if (changes := variant.changes()) else {}),
    }


def _heads(state: Mapping[str, Tensor], facts: Facts, width: int) -> int:
    if facts.heads is not None:
        return facts.heads
    for name in ("relative_bias.table", "blocks.0.relative_bias.table"):
        if name in state:
            return state[name].shape[1]
    if "blocks.0.attn.q_norm.weight" in state:
        return width // len(state["blocks.0.attn.q_norm.weight"])
    heads = default_heads(width)
    facts.guesses.append(f"heads: {heads}, as usual for a width of {width}; {to_say('heads')}")
    return heads


def default_heads(width: int) -> int:
    """Return the heads of a standard ViT of that width; for other widths, heads of 64 or else 32 channels."""
    return _HEADS.get(width) or max(1, width // 64 if width % 64 == 0 else width // 32)


def _grid(state: Mapping[str, Tensor], facts: Facts, patch_size: int, width: int, file: Path) -> tuple[int, int]:
    """Return (rows, columns) of patches: as the file says, or as its positions show."""
    said = None if facts.image_size is None else tuple(side // patch_size for side in facts.image_size)
    if "pos_embed" not in state:
        table = next((state[name] for name in state if name.endswith("relative_bias.table")), None)
        if table is None:
            facts.guesses += [] if said else [f"images of 224 x 224 px, as usual; {to_say('trained_size')}"]
            return (said[0], said[1]) if said else (224 // patch_size, 224 // patch_size)
        entries = len(table) - 3
        if said and (2 * said[0] - 1) * (2 * said[1] - 1) == entries:
            return said[0], said[1]
        side = math.isqrt(entries)
        if side * side != entries:
            raise UserError(
                f"RUN: {file} has relative positions of a grid that is not square; --trained_size H W says which"
            )
        return (side + 1) // 2, (side + 1) // 2
    positions = state["pos_embed"]
    if positions.ndim != 3 or positions.shape[2] != width:
        raise UserError(f"RUN: {file}: expected pos_embed [1, 1 + patches, {width}], got {list(positions.shape)}")
    entries, registers = positions.shape[1], state["registers"].shape[1] if "registers" in state else 0
    before = (0, 1, 1 + registers)  # entries of the class token, and of a distillation token
    if said and entries - said[0] * said[1] in before:
        return said[0], said[1]
    if said and facts.image_size:
        raise UserError(
            f"RUN: {file} has {entries} positions, and images of {facts.image_size[0]} x {facts.image_size[1]} px have "
            f"{said[0] * said[1]} patches of {patch_size} px; correct --trained_size (image_size in Python)"
        )
    if (grid := _fixed_grid(positions[0], width)) is not None:
        return grid
    squares = [count for count in before if math.isqrt(entries - count) ** 2 == entries - count]
    # positions of patches only are those of DeiT III, which has layer scale, and of timm's networks with registers
    if not squares or (squares == [0] and not (registers or "blocks.0.ls1.gamma" in state)):
        raise UserError(
            f"RUN: {file} has {entries} positions, which is no square grid of patches and a class token; "
            f"--trained_size H W says which"
        )
    side = math.isqrt(entries - squares[-1])
    return side, side


def _fixed_grid(positions: Tensor, width: int) -> tuple[int, int] | None:
    """Return the grid whose sine-cosine positions these are, after one entry of zeros; None if there is none."""
    patches = positions.shape[0] - 1
    if width % 4 or patches < 1 or bool(positions[0].any()):
        return None
    for rows in (rows for rows in range(1, patches + 1) if patches % rows == 0):
        grid = rows, patches // rows
        if torch.allclose(positions[1:], sincos_positions(width, grid), atol=1e-4):
            return grid
    return None


def build(layout: Layout, facts: Facts, file: Path, *, drop_path: float = 0.0) -> Encoder:
    """Build the encoder of weights of another library, and load them; every tensor has to be used.

    Raises:
        UserError: if they do not fit.
    """
    settings = infer_settings(layout, facts, file)
    try:
        encoder = build_encoder(settings | {"drop_path": drop_path})
    except ValueError as error:
        raise UserError(f"RUN: {file}: {error}") from None
    state = _with_positions(layout.tensors, encoder)
    if "class_position" in state:
        encoder.class_position = nn.Parameter(torch.zeros(1, 1, encoder.width))
    expected = encoder.state_dict()
    for name, value in state.items():
        if name in expected and value.shape != expected[name].shape:
            raise UserError(
                f"RUN: {file}: {name} has the shape {list(value.shape)}, expected {list(expected[name].shape)} in a "
                f"{facts.kind or 'ViT'} of {settings['width']} channels and {settings['heads']} heads"
            )
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        raise UserError(
            f"RUN: {file} ({layout.name}) has parts that the encoder lacks or lacks some of its parts: unknown "
            f"{sorted(unknown)[:3]}, missing {sorted(missing)[:3]}"
        )
    encoder.load_state_dict(state)
    return encoder


def _with_positions(tensors: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """Return the state dict of an encoder: registers take up their own position embeddings, the class token keeps it.

    A position of the class token that is zero, as MAE's, is left out.
    """
    state = dict(tensors)
    positions = state.pop("pos_embed", None)
    if positions is None:
        return state
    patches = encoder.grid[0] * encoder.grid[1]
    before, state["positions"] = positions[0].split([positions.shape[1] - patches, patches])
    if len(before) and before[0].any():
        state["class_position"] = before[None, :1]
    if len(before) > 1:  # of a distillation token
        state["registers"] = state["registers"] + before[1:]
    return state
