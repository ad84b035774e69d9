"""Tokenizers: networks that assign a visual token to each patch, which BEiT's student predicts (Bao et al. 2022).

There are two: that of DALL-E, which BEiT uses and whose weights you need, and a small one that you can train on your
own images (:mod:`hardpatch.pretrain.tokenizer`). Both are discrete variational autoencoders (Ramesh et al. 2021, Sec.
2.1).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.models.dalle import DalleTokenizer
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.pickles import load_pickle
from hardpatch.weights import check_finite, check_sizes, parse_metadata

FILE = "tokenizer.safetensors"
"""Name of the file in a folder of ``hardpatch tokenizer``."""
METADATA, KIND = "hardpatch_tokenizer", "discrete_vae"
"""Key of the metadata in the file of a :class:`~hardpatch.models.discrete_vae.DiscreteVAE`, and its ``kind`` there."""


class Tokenizer(Protocol):
    """A network that assigns a visual token, an entry of a vocabulary, to each patch of an image."""

    vocabulary: int
    """number of tokens"""

    def tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokenize ``pixels`` (uint8 ``[B, 3, H, W]``) on a ``grid`` of (rows, columns): int64 ``[B, N]``.

        Tokens are in order of rows, without gradient. The pixels must be on the device of the tokenizer.
        """


def load_tokenizer(path: str | Path, device: torch.device | str = "cpu") -> DalleTokenizer | DiscreteVAE:
    """Load a tokenizer, frozen and in eval mode: a file of ``hardpatch tokenizer``, or weights of DALL-E's encoder.

    Args:
        path: a folder of ``hardpatch tokenizer``, its ``.safetensors`` file, or a state dict saved by ``torch.save``;
            no code in it is run.
        device: where to put the tokenizer.

    Raises:
        UserError: if the file is neither.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    state, metadata = _read(path)
    tokenizer: DalleTokenizer | DiscreteVAE
    try:
        if metadata.get("kind") == KIND:
            check_sizes(metadata, {name: ("", list(value.shape)) for name, value in state.items()})
            settings = {name: metadata[name] for name in ("patch_size", "vocabulary", "width")}
            with torch.device("meta"):  # a wrong number takes no memory
                tokenizer = DiscreteVAE(**settings)
        elif metadata or not {"blocks.input.w", "blocks.output.conv.w"} <= state.keys():
            raise UserError(
                f"method.tokenizer: {path} is no tokenizer; expected a file of hardpatch tokenizer, or the state dict "
                f"of DALL-E's encoder (blocks.input.w, ...); it holds {', '.join(list(state)[:3]) or 'nothing'}"
            )
        else:
            blocks = sum(name.startswith("blocks.group_1.") and name.endswith(".conv_1.w") for name in state)
            width, vocabulary = state["blocks.input.w"].shape[0], state["blocks.output.conv.w"].shape[0]
            tokenizer = DalleTokenizer(width, vocabulary, blocks)
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"method.tokenizer: {path} does not describe a tokenizer: {error}") from None
    expected = {name: list(value.shape) for name, value in tokenizer.state_dict().items()}
    shapes = {name: list(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise UserError(
                f"method.tokenizer: {path} does not fit: {name} should be {expected.get(name, 'absent')} "
                f"and is {shapes.get(name, 'absent')}"
            )
    check_finite(state, path, "method.tokenizer")
    if isinstance(tokenizer, DiscreteVAE):
        tokenizer = DiscreteVAE(**settings)
    tokenizer.load_state_dict(state)
    return tokenizer.requires_grad_(False).eval().to(device)


def _read(path: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Read the tensors of a weight file, and the metadata of a :class:`DiscreteVAE` if there is any."""
    if not path.is_file():
        raise UserError(f"method.tokenizer: {path} is no file; expected weights of a tokenizer")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                metadata = parse_metadata((file.metadata() or {}).get(METADATA, "{}"), path, "method.tokenizer")
                return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"method.tokenizer: {path} is not a readable safetensors file: {error}") from None
    state = load_pickle(path, "method.tokenizer")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"method.tokenizer: {path} is no state dict; expected names and tensors only")
    return state, {}
