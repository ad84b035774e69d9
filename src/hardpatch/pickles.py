"""Weights in safe formats: pickles from elsewhere read without running what is in them, safetensors written."""

import argparse
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hardpatch.errors import UserError


def load_pickle(path: Path, argument: str) -> Any:
    """What ``torch.save`` wrote, if it is tensors and plain values (and ``argparse.Namespace``, as training scripts
    leave it); nothing else is unpickled.

    Args:
        path: a ``.pth``, ``.pt`` or ``.bin`` file.
        argument: whence the path came, to begin a complaint with.

    Raises:
        UserError: if it could run code, or torch cannot read it.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles; what torch cannot read safely it refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{argument}: {path} holds a pickle that could run code and is not opened; expected tensors only "
            "(torch.save of a state_dict) or a .safetensors file"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        first = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{argument}: {path} is not a file that torch can read: {first}") from None


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file with the rights that any new file has; the library lets only its owner read it."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    path.chmod(mode)
