"""Models from weights of other libraries, and from what this package has exported for them."""

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from hardpatch.choices import WeightsName
from hardpatch.data.reading import Reading
from hardpatch.errors import UserError
from hardpatch.interchange.architecture import Facts, build, facts_beside
from hardpatch.interchange.layouts import Layout, find_layout
from hardpatch.interchange.reference import DECODER, decoder_parts, from_reference, has_decoder
from hardpatch.interchange.tensors import read_tensors
from hardpatch.methods.encoder_only import EncoderOnly
from hardpatch.methods.hpm import HPM
from hardpatch.weights import described, parse_metadata

EXPORTED = "hardpatch_export"
"""Metadata entry of exported files: a JSON object with image size, heads, mean and standard deviation."""
HEAD = re.compile(r"(.*\.)?(head|head_dist|fc_norm|classifier)(?=\.(weight|bias)$)")
"""Parts of a classifier after its encoder"""

log = logging.getLogger("hardpatch")


class Match(NamedTuple):
    """Tensors of a file, and what became of them."""

    names: str
    """whose names they have"""
    matched: dict[str, tuple[int, ...]]
    """shapes of those that the model has now, in timm's names, those of a decoder in MAE's"""
    left_out: dict[str, tuple[int, ...]]
    """shapes of those that it has not, in the names of the file"""


def read_foreign(
    file: Path,
    weights: WeightsName = "auto",
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    normalize_pixels: bool = False,
) -> tuple[HPM, Match]:
    """Read a model: with its reconstructor if the file has one, else an encoder only; and tell what became of the file.

    Args:
        file: see :func:`~hardpatch.interchange.tensors.read_tensors`.
        weights: of a pickle that has both; see :func:`~hardpatch.interchange.tensors.read_tensors`.
        heads: of the encoder, where the file does not say.
        decoder_heads: likewise.
        image_size: (height, width) in pixels, likewise.
        normalize_pixels: the targets were normalized per patch.

    Raises:
        UserError: if the file is no such network, or has parts that are not known.
    """
    state = read_tensors(file, weights)
    facts = _facts(file, heads, image_size)
    layout = find_layout(state)
    if layout is None:
        raise UserError(
            f"RUN: {file} has no embedding of patches by a name that is known (of timm, Hugging Face, DINO, MAE, "
            f"CLIP), and is no checkpoint of HPM or MAE; found: {', '.join(sorted(state)[:3])}"
        )
    parts = decoder_parts(state, layout) if has_decoder(state) else {}
    if parts:
        model = from_reference(
            state,
            facts,
            decoder_heads=decoder_heads,
            normalize_pixels=normalize_pixels or facts.normalize_pixels,
            file=file,
        )
    else:
        encoder = build(layout, facts, file)
        _say_left_out(layout, file)
        mean, std = facts.normalization(encoder.channels, file)
        model = HPM(EncoderOnly(encoder), None, mean=mean, std=std, reading=_reading(file, encoder.channels))
    facts.say_guesses(file)
    matched = {name: tuple(value.shape) for name, value in {**layout.tensors, **parts}.items()}
    left_out = {name: tuple(state[name].shape) for name in layout.left_out if not DECODER.search(name) or not parts}
    return model, Match(layout.name, matched, left_out)


def _say_left_out(layout: Layout, file: Path) -> None:
    """Log which head of a fine-tuned network is not read, and which norm goes with it."""
    parts = dict.fromkeys(match[0] for name in layout.left_out if (match := HEAD.match(name)) is not None)
    if parts:
        log.info("%s: the encoder is read, without what follows it: %s", file, ", ".join(parts))


def _reading(file: Path, channels: int) -> Reading:
    """Return channels, type and range of the pixels, as an export of ours says; else 8 bits."""
    own = _exported_metadata(file).get("reading")
    with described(file):
        return Reading(channels) if own is None else Reading.from_dict(own)


def _facts(file: Path, heads: int | None, image_size: tuple[int, int] | None) -> Facts:
    """Return what the user, an export of ours, and the files beside it say, the first one that says it."""
    facts, metadata = facts_beside(file), _exported_metadata(file)
    facts.heads = heads or metadata.get("heads") or facts.heads
    facts.image_size = image_size or metadata.get("image_size") or facts.image_size
    for name in ("norm_eps", "activation", "rope_theta"):
        setattr(facts, name, metadata.get(name) or getattr(facts, name))
    facts.mean, facts.std = metadata.get("mean", facts.mean), metadata.get("std", facts.std)
    return facts


def _exported_metadata(file: Path) -> dict[str, Any]:
    """Return what an export of ours says of itself, empty for other files.

    Raises:
        UserError: if it is a network of ours of another kind.
    """
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, "pt") as content:
        metadata = content.metadata() or {}
    other = next((name for name in metadata if name.startswith("hardpatch_") and name != EXPORTED), None)
    if other is not None:
        kind = other.removeprefix("hardpatch_")
        raise UserError(f"RUN: expected a pre-training run or weights of an encoder, {file} is of another kind, {kind}")
    return parse_metadata(metadata.get(EXPORTED, "{}"), file)
