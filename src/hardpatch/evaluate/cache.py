"""Features on the disk: computed once for a model and a set, then read by every measurement that wants them.

A cache file says in its metadata what it is made of: the weights, the images, how they were cut and pooled. Its name
has a digest of all that, so that whatever changes makes another file, and a stale one is never read.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from hardpatch import __version__
from hardpatch.data.sources import Source
from hardpatch.measure.features import Features
from hardpatch.pickles import save_tensors

KEY = "hardpatch_features"


class FeatureCache:
    """A folder of feature files of one model.

    Args:
        folder: where they lie, by custom ``RUN/features``; made when the first is written.
        model: whose features they are; a digest of its weights goes into each file.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.folder, self.weights = folder, _digest_of_weights(model)

    def describe(self, source: Source, path: str | Path, **how: Any) -> dict[str, Any]:
        """What a file of these images is made of; ``how`` they are cut and pooled must be plain values."""
        return {
            "hardpatch": __version__,
            "weights": self.weights,
            "data": str(path),
            "images": len(source),
            "content": _digest_of_images(source, path),
            **how,
        }

    def read(self, made_of: dict[str, Any]) -> Features | None:
        """The features of that description, or None where there are none that can be read."""
        try:
            with safe_open(self._path(made_of), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("features", "labels", "indices")}
                told = json.loads(file.metadata()[KEY])
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
            return None
        bad = told.pop("bad")
        return Features(tensors["features"], tensors["labels"], bad, tensors["indices"]) if told == made_of else None

    def write(self, made_of: dict[str, Any], features: Features) -> Path:
        """Keep features, whole or not at all. Returns the file."""
        path = self._path(made_of)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        tensors = {name: getattr(features, name) for name in ("features", "labels", "indices")}
        save_tensors(tensors, partial, {KEY: json.dumps({**made_of, "bad": features.bad})})
        os.replace(partial, path)
        return path

    def _path(self, made_of: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
        name = Path(made_of["data"]).stem.replace(":", "_") or "images"
        return self.folder / f"{name}-{made_of['pool']}-{digest}.safetensors"


def _digest_of_weights(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_images(source: Source, path: str | Path) -> str:
    """By name, label, size and time of change, not by content: a million files are not read to learn that."""
    digest = hashlib.blake2b(digest_size=16)
    for file in [path, *(source.name(i) for i in range(len(source)))]:
        try:
            told = os.stat(file)
            digest.update(f"{file}\0{told.st_size}\0{told.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except (OSError, ValueError):  # a row of a Parquet file, an image of the embedded set
            digest.update(f"{file}\n".encode(errors="surrogateescape"))
    digest.update(repr([source.label(i) for i in range(len(source))]).encode())
    return digest.hexdigest()
