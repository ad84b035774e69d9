"""Result of a pre-training."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hardpatch.configuration.build import initial_model
from hardpatch.data.reading import read_reading
from hardpatch.methods.hpm import HPM
from hardpatch.pretrain.folder import read_config
from hardpatch.pretrain.verdict import Verdict
from hardpatch.train import checkpoint


@dataclass(frozen=True)
class PretrainResult:
    """Result of :func:`hardpatch.pretrain`."""

    folder: Path
    checkpoint: Path
    """the newest"""
    step: int
    """optimizer steps done"""
    total: int
    """optimizer steps of the complete run"""
    signal: int = 0
    """signal that interrupted the run, 0 for none"""
    metrics: Mapping[str, Any] | None = None
    """the last line of metrics"""
    pictures: tuple[Path, ...] = ()
    verdict: Verdict | None = None
    """whether it has learned anything; None if it was interrupted, or had no checks"""

    @property
    def finished(self) -> bool:
        """True unless the run was interrupted."""
        return self.step == self.total

    def encoder(self, images: Tensor) -> Tensor:
        """Return the mean patch token of each image, ``[B, C, H, W]`` -> float32 ``[B, D]``, by the student's encoder.

        Args:
            images: of any size, resized to that of the run; pixels of the type of the data, which is mostly uint8, or
                for 8-bit data floating-point numbers in [0, 1].
        """
        model = self._model
        pixels = images.float()
        if images.is_floating_point() and model.reading.dtype == "uint8":
            pixels = 255.0 * pixels
        if pixels.shape[-2:] != model.image_size:
            pixels = F.interpolate(pixels, size=model.image_size, mode="bicubic", antialias=True)
        with torch.inference_mode():
            return model.encode(model.normalize(pixels))[:, 1:].float().mean(dim=1)

    def _repr_html_(self) -> str:
        """Return verdict and pictures, as a notebook shows them."""
        text = f"{self.folder}: step {self.step} of {self.total}"
        if self.verdict is not None:
            text += f"\n{self.verdict}"
        encoded = (base64.b64encode(path.read_bytes()).decode() for path in self.pictures)
        pictures = "".join(
            f'<img src="data:image/png;base64,{data}" alt="{escape(path.name)}" style="max-width: 100%">'
            for path, data in zip(self.pictures, encoded, strict=True)
        )
        return f"<pre>{escape(text)}</pre>{pictures}"

    @cached_property
    def _model(self) -> HPM:
        """The student of the newest checkpoint, on the CPU."""
        file = self.checkpoint / checkpoint.WEIGHTS
        metadata = checkpoint.read_metadata(file) or {}
        run, reading = read_config(self.folder), read_reading(metadata)
        model = initial_model(run, metadata["mean"], metadata["std"], metadata["outputs"], reading)
        model.load_state_dict(checkpoint.with_prefix(load_file(file), "student."))
        return model.requires_grad_(False).eval()
