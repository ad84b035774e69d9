"""Cache of extracted features on disk, shared by every measurement of one model on one image set.

The metadata of a cache file describes its origin: the weights, the images, their crop and the pooling. The file name
contains a digest of that description, so any change leads to another file and an outdated one is never read.
"""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from hardpatch import __version__
from hardpatch.data.names import path_text
from hardpatch.data.sources import OpenedSource, Paths
from hardpatch.files import atomic_path
from hardpatch.measure.features import Features
from hardpatch.models.block import Attention
from hardpatch.pickles import save_tensors

KEY = "hardpatch_features"
TENSORS = ("features", "labels", "indices")


class FeatureCache:
    """Folder of feature files of one model.

    Args:
        folder: usually ``RUN/features``; created when the first file is written.
        model: the model that computes the features; a digest of its weights goes into each file.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.folder, self.weights = folder, _digest_of_weights(model)

    def describe(self, source: OpenedSource, path: Paths, **settings: Any) -> dict[str, Any]:
        """Return the description of a file: weights, images and the ``settings`` of cropping and pooling.

        The settings must be plain values.
        """
        return {
            "hardpatch": __version__,
            "weights": self.weights,
            "data": path_text(path),
            "images": len(source),
            "content": _digest_of_images(source, path),
            **settings,
        }

    def read(self, description: dict[str, Any]) -> Features | None:
        """Return the features with that description, or None if there is no readable file with them."""
        try:
            with safe_open(self._path(description), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in TENSORS}
                metadata = json.loads(file.metadata()[KEY])
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
            return None
        bad = metadata.pop("bad")
        return Features(**tensors, bad=bad) if metadata == description else None

    def write(self, description: dict[str, Any], features: Features) -> Path:
        """Write features atomically. Returns the path of the file.

        Raises:
            OSError: if the folder cannot be written.
        """
        path = self._path(description)
        if self.folder.is_symlink():
            raise OSError(errno.EPERM, "a symbolic link, which is not followed", str(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(features, name) for name in TENSORS}
        with atomic_path(path, concurrent=True) as partial:
            save_tensors(tensors, partial, {KEY: json.dumps({**description, "bad": features.bad})})
        return path

    def _path(self, description: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]
        name = Path(description["data"]).stem.replace(":", "_") or "images"
        return self.folder / f"{name}-{description['pool']}-{digest}.safetensors"


def _digest_of_weights(model: nn.Module) -> str:
    """Digest of the tensors, and of the modules: no tensor shows the number of heads."""
    digest = hashlib.blake2b(digest_size=16)
    heads = [module.heads for module in model.modules() if isinstance(module, Attention)]
    digest.update(repr(heads).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_images(source: OpenedSource, path: Paths) -> str:
    """Digest of files, classes and labels; reading the content of a million files takes too long.

    A file is known by its name, size and times: that of the content, and that of any change, which no program can set.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{path_text(path)}\n".encode(errors="surrogateescape"))
    for file in source.files():
        try:
            status = os.stat(file)
            digest.update(
                f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n".encode(
                    errors="surrogateescape"
                )
            )
        except (OSError, ValueError):  # a file that is missing
            digest.update(f"{file}\n".encode(errors="surrogateescape"))
    digest.update(repr((source.classes, [source.label(i) for i in range(len(source))])).encode())
    return digest.hexdigest()
