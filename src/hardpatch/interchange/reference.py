"""Models with encoder and reconstructor from weights of HPM's and MAE's reference code, or of Hugging Face.

Keys of encoder parts have no prefix, those of the reconstructor are ``decoder_*``, those of the loss predictor
``decoder_*_losspred``. Training wrappers add ``module.``, golden files ``model.``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hardpatch.errors import UserError
from hardpatch.interchange.architecture import Facts, build, to_say
from hardpatch.interchange.layouts import Layout, find_layout, in_blocks
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.models.decoder import Decoder, DecoderEmbed
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import encoder_settings

# The first match wins: the loss predictor's names begin like those of the reconstructor.
OUR_PREFIX = {
    "decoder_blocks_losspred.": "predictor.blocks.",
    "decoder_norm_losspred.": "predictor.norm.",
    "decoder_pred_losspred.": "predictor.head.",
    "decoder_blocks.": "host.reconstructor.blocks.",
    "decoder_norm.": "host.reconstructor.norm.",
    "decoder_pred.": "host.reconstructor.head.",
    "decoder_embed.": "host.decoder_embed.proj.",
    "mask_token": "host.decoder_embed.mask_token",
}
BLOCKS = re.compile(r"^decoder_(layers|encoder\.layer)")
"""Names of the decoder's blocks in Hugging Face"""


DECODER = re.compile(r"(?:.*\.)?(decoder_|mask_token)")
"""Names of tensors of decoders"""


def has_decoder(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has a reconstructor besides its encoder, in MAE's or Hugging Face's names."""
    return any(key.endswith("decoder_embed.weight") for key in state)


def from_reference(
    state: Mapping[str, Tensor],
    facts: Facts | None = None,
    *,
    decoder_heads: int | None = None,
    normalize_pixels: bool = False,
    file: Path = Path("weights"),
) -> HPM:
    """Build the model of a state with encoder and reconstructor, and load the state strictly.

    Sizes are inferred from the tensors; MAE checkpoints have no loss predictor. Positions that are not the sine-cosine
    ones are taken from the file. Numbers of heads cannot be inferred: those of the encoder are by default
    :func:`~hardpatch.interchange.architecture.default_heads`, those of the decoders 16, or fewer with 16 channels each.

    Args:
        state: keys of the reference implementations, with or without ``module.`` and ``model.``, or of
            ``ViTMAEForPreTraining``.
        facts: what the file and the user say.
        decoder_heads: of the decoders, instead of the default.
        normalize_pixels: the targets were normalized per patch, which cannot be inferred either.
        file: named in error messages.

    Raises:
        UserError: if keys are missing or unknown.
    """
    facts = facts or Facts()
    layout = find_layout(state)
    if layout is None:
        raise UserError(f"RUN: {file} has a decoder and no embedding of patches; expected MAE's or HPM's weights")
    encoder, parts = build(layout, facts, file), decoder_parts(state, layout)
    width, decoder_heads = parts["decoder_embed.weight"].shape[0], decoder_heads or facts.decoder_heads
    if decoder_heads is None:
        decoder_heads = min(16, width // 16)
        facts.guesses.append(f"decoder heads: {decoder_heads}; {to_say('decoder_heads')}")
    try:
        host = _host(encoder, parts, decoder_heads, normalize_pixels=normalize_pixels)
    except ValueError as error:
        raise UserError(f"RUN: {error}") from None
    _set_positions(host.decoder_embed, parts.pop("decoder_pos_embed", None), file)
    predictor_depth = _depth(parts, "decoder_blocks_losspred.")
    predictor = None
    if predictor_depth:
        outputs = parts["decoder_pred_losspred.weight"].shape[0]
        predictor = Decoder(width=width, depth=predictor_depth, heads=decoder_heads, outputs=outputs)
    mean, std = facts.normalization(encoder.channels, file)
    model = HPM(host, predictor, mean=mean, std=std)
    own = ("host.encoder.", "host.decoder_embed.positions", "host.decoder_embed.class_position")
    loaded = {name: value for name, value in model.state_dict().items() if name.startswith(own)}
    problems = model.load_state_dict(loaded | rename(parts), strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise UserError(
            f"RUN: the checkpoint does not fit: missing {problems.missing_keys[:3]}, "
            f"unknown {problems.unexpected_keys[:3]}"
        )
    return model


def decoder_parts(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of the decoders of a state dict with the encoder ``layout``, in the names of MAE and HPM."""
    prefix = next(key for key in state if key.endswith("decoder_embed.weight")).removesuffix("decoder_embed.weight")
    parts = {BLOCKS.sub("decoder_blocks", key.removeprefix(prefix)): state[key].float() for key in layout.left_out}
    return in_blocks({name: part for name, part in parts.items() if DECODER.match(name)})


def _host(encoder: Encoder, parts: Mapping[str, Tensor], decoder_heads: int, *, normalize_pixels: bool) -> MAE:
    """Build a masked autoencoder around an encoder; of its decoder only the sizes are those of ``parts``."""
    settings = encoder_settings(encoder)
    names = ("patch_size", "channels", "width", "depth", "heads", "mlp_ratio")
    host = MAE(
        image_size=tuple(settings["image_size"]),
        **{name: settings[name] for name in names},
        variant=encoder.variant,
        decoder_width=parts["decoder_embed.weight"].shape[0],
        decoder_depth=_depth(parts, "decoder_blocks."),
        decoder_heads=decoder_heads,
        normalize_pixels=normalize_pixels,
    )
    for part in host.reconstructor.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = encoder.variant.norm_eps
    computed, positions = host.encoder.positions, encoder.positions
    host.encoder = encoder
    if computed is not None and positions is not None and torch.equal(positions, computed):
        encoder.register_buffer("positions", computed, persistent=False)  # as in our own runs
    return host


def _set_positions(embed: DecoderEmbed, positions: Tensor | None, file: Path) -> None:
    """Give a decoder the positions ``[1, 1 + N, W]`` of a file, unless they are those that it computes."""
    if positions is None:
        return
    if positions.shape != (1, 1 + len(embed.positions), embed.positions.shape[1]):
        raise UserError(
            f"RUN: {file}: decoder_pos_embed has the shape {list(positions.shape)}, expected "
            f"{[1, 1 + len(embed.positions), embed.positions.shape[1]]}"
        )
    if not torch.equal(positions[0, 1:], embed.positions):
        embed.register_buffer("positions", positions[0, 1:].clone(), persistent=True)
    if positions[0, 0].any():
        embed.register_buffer("class_position", positions[:, :1].clone(), persistent=True)


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the reference's keys of decoders to those of :class:`~hardpatch.methods.hpm.HPM`; unknown keys stay."""
    renamed = {}
    for key, value in state.items():
        prefix = next((p for p in OUR_PREFIX if key.startswith(p)), "")
        renamed[OUR_PREFIX.get(prefix, "") + key.removeprefix(prefix)] = value
    return renamed


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
