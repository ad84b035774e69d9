"""Weight files: pickles of others are read without running code, safetensors are written."""

import argparse
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.files import os_error


def load_pickle(path: Path, argument: str) -> Any:
    """Load a file of ``torch.save`` that holds tensors and plain values only.

    ``argparse.Namespace`` is allowed, too: training scripts save one beside the weights. Nothing else is unpickled.

    Args:
        path: a ``.pth``, ``.pt`` or ``.bin`` file.
        argument: the option that the path comes from, named first in error messages.

    Raises:
        UserError: if loading it could run code, or torch cannot read it.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles: torch either reads them safely or raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if is_page(path):
            raise UserError(
                f"{argument}: {path} is an HTML page and no weights, as a failed download leaves; download it again"
            ) from None
        raise UserError(
            f"{argument}: {path} holds a pickle that could run code and is not opened; expected tensors only "
            "(torch.save of a state_dict) or a .safetensors file; where you trust its source, save it anew: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW)"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{argument}: {path} is not a file that torch can read: {reason}") from None


def is_page(path: Path) -> bool:
    """Return True for a page of a web server."""
    with path.open("rb") as file:
        return file.read(256).lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that has the permissions of any new file.

    Without this the library would make it readable by its owner only.

    Raises:
        OSError: if it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise os_error(error, path) from None
    path.chmod(mode)
