"""Weights files: their metadata is compared with their tensors before a model is built."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hardpatch.errors import UserError

DEPTHS = ("depth", "decoder_depth", "predictor_depth")
"""Settings of networks that are numbers of blocks, of which each has tensors."""
WIDTHS = ("width", "decoder_width", "heads", "decoder_heads", "vocabulary", "outputs", "channels", "patch_size")
"""Those that are sides of tensors."""
MOST_PIXELS = 1 << 16
"""Side of an image that a network may be built for."""

M = TypeVar("M", bound=nn.Module)


def parse_metadata(text: str, path: str | Path, argument: str = "RUN") -> dict[str, Any]:
    """Return the values in the metadata of a file.

    Raises:
        UserError: if they are not a JSON object.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{argument}: {path}: expected metadata as JSON, {reason}; copy the file again") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{argument}: {path}: expected metadata as a JSON object, got {str(values)[:40]}; copy the file again"
        )
    return values


def stored_tensors(path: str | Path, argument: str = "RUN") -> dict[str, tuple[str, list[int]]]:
    """Return type and shape of each tensor of a safetensors file, without reading it.

    Raises:
        UserError: if the file is none.
    """
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (str(part.get_dtype()), list(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{argument}: {path} is not a safetensors file: {' '.join(str(error).split())}") from None


def fitted(
    build: Callable[[], M],
    path: str | Path,
    metadata: Mapping[str, Any],
    prefix: str = "",
    *,
    argument: str = "RUN",
    load: bool = True,
    left_out: Collection[str] = (),
) -> M:
    """Build a network that metadata describes, and load its weights.

    It is built without memory first, so that a wrong number in the metadata takes none.

    Args:
        build: makes the network from the metadata.
        path: of the file.
        metadata: of the file, to be checked.
        prefix: of the names of its tensors.
        argument: the option that the path comes from.
        load: load the weights; else the network keeps those of its start.
        left_out: names of tensors, with the prefix, that the network does not have.

    Raises:
        UserError: if the metadata does not describe a network, if that does not have these tensors, or if they hold
            NaN or infinity.
    """
    tensors = {name: value for name, value in stored_tensors(path, argument).items() if name not in left_out}
    with safe_open(path, "pt") as file:  # once open it can be read, also if a running training removes it meanwhile
        return _fitted(build, path, metadata, prefix, tensors, argument, file if load else None)


def _fitted(
    build: Callable[[], M],
    path: str | Path,
    metadata: Mapping[str, Any],
    prefix: str,
    tensors: dict[str, tuple[str, list[int]]],
    argument: str,
    file: Any,
) -> M:
    with described(path, argument):
        check_sizes(metadata, tensors)
        with torch.device("meta"):
            empty = build()
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    check_tensors(empty.state_dict(), own, path, argument)
    with described(path, argument):
        model = build()
    if file is not None:
        state = {name: file.get_tensor(f"{prefix}{name}") for name in own}
        check_finite(state, path, argument)
        model.load_state_dict(state)
    return model


@contextmanager
def described(path: str | Path, argument: str = "RUN") -> Iterator[None]:
    """Turn what goes wrong where values of a file's metadata are used into a UserError that names the file."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{argument}: {path}: in its metadata: {error}") from None
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        AssertionError,
        MemoryError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        reason = f"no {reason}" if isinstance(error, KeyError) else reason or type(error).__name__
        raise UserError(
            f"{argument}: {path}: its metadata does not describe a network ({reason}); copy the file again"
        ) from None


def check_sizes(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, list[int]]]) -> None:
    """Refuse settings of networks, at any depth of the metadata, that are larger than the tensors of their file.

    Raises:
        ValueError: names the setting.
    """
    elements = sum(math.prod(shape) for _, shape in tensors.values())
    waiting: list[Any] = [metadata]
    while waiting:
        values = waiting.pop()
        if not isinstance(values, Mapping):
            continue
        waiting += values.values()
        for name, value in values.items():
            most = len(tensors) if name in DEPTHS else elements if name in WIDTHS else None
            if most is not None and isinstance(value, int | float) and not value <= most:
                raise ValueError(f"{name}: expected at most {most:,}, as the tensors of the file are, got {value:g}")
            sides = value if isinstance(value, list) else [value]
            for side in sides if name == "image_size" else ():
                if isinstance(side, int | float) and not 0 < side <= MOST_PIXELS:
                    raise ValueError(f"{name}: expected 1 to {MOST_PIXELS:,} pixels, got {side:g}")


def check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, tuple[str, list[int]]], path: str | Path, argument: str = "RUN"
) -> None:
    """Compare the tensors of a file with those of the network that its metadata describes.

    Raises:
        UserError: names the first that is missing, unknown, or of another shape or kind of numbers.
    """
    for name in sorted(expected.keys() | found.keys()):
        needed = None if name not in expected else list(expected[name].shape)
        dtype, shape = found.get(name, ("", None))
        if needed != shape:
            raise UserError(
                f"{argument}: {path}: its tensors do not fit its metadata: {name} should be "
                f"{'absent' if needed is None else needed} and is {'absent' if shape is None else shape}; "
                "copy the file again"
            )
        if expected[name].is_floating_point() != dtype.startswith(("F", "BF")):
            raise UserError(
                f"{argument}: {path}: expected {name} as {str(expected[name].dtype).removeprefix('torch.')}, got "
                f"{dtype}; copy the file again"
            )


def check_finite(state: Mapping[str, Tensor], path: str | Path, argument: str = "RUN") -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        UserError: names the first tensor.
    """
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{argument}: {path}: expected finite weights, {name} holds NaN or infinity; take an earlier checkpoint"
            )


def check_normalization(metadata: Mapping[str, Any]) -> None:
    """Refuse means and deviations of channels that no image can be normalized by.

    Raises:
        ValueError: names the field.
    """
    mean, std = metadata["mean"], metadata["std"]
    for name, values in (("mean", mean), ("std", std)):
        plain = isinstance(values, list | tuple) and values and all(isinstance(v, int | float) for v in values)
        if not plain or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            kind = "positive numbers" if name == "std" else "numbers"
            raise ValueError(f"{name}: expected {kind}, one for each channel, got {str(values)[:40]}")
    if len(mean) != len(std):
        raise ValueError(f"std: expected one number for each of the {len(mean)} channels of mean, got {len(std)}")
