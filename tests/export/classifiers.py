"""Run folders of classifiers and segmenters with random weights, written without training, and photographs."""

from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.choices import PoolName
from hardpatch.finetune.early import save_network
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.trainer import KIND
from hardpatch.interchange.finetuned import PROBE
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.models.transfer import unshare_relative_bias
from hardpatch.segment.file import save_segmenter
from hardpatch.segment.measure import Inference
from hardpatch.segment.model import UperNet

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CLASSES = ("ant", "bee", "cat", "dog", "eel")


def randomize(network: nn.Module) -> None:
    """Draw all parameters and the statistics of batch norms."""
    torch.manual_seed(0)
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if "running_var" in name:
            nn.init.uniform_(value, 0.5, 2.0)
        elif isinstance(value, nn.Parameter) or "running_mean" in name:
            nn.init.normal_(value, std=0.2)


def encoder_of(size: tuple[int, int] = (32, 32), **options: Any) -> Encoder:
    relative = options.get("positions") == "relative"
    return Encoder(image_size=size, patch_size=8, width=48, depth=4, heads=3, drop_masked=not relative, **options)


def classifier_file(folder: Path, *, pool: PoolName = "mean", frozen: bool = False, **options: Any) -> Path:
    """Write ``probe.safetensors`` of a classifier with random weights."""
    encoder = encoder_of(**options)
    unshare_relative_bias(encoder)
    model = Classifier(encoder, len(CLASSES), mean=MEAN, std=STD, pool=pool, frozen=frozen)
    with torch.no_grad():
        randomize(model)
    folder.mkdir()
    metadata = {
        "kind": KIND,
        "encoder": encoder_settings(model.encoder) | {"positions": _positions(model.encoder, frozen)},
        "classes": CLASSES,
        "mean": MEAN,
        "std": STD,
        "image_size": list(model.encoder.image_size),
        "finetune": {"drop_path": 0.0, "frozen": frozen, "pool": pool},
    }
    save_network(folder / PROBE, model, metadata)
    return folder / "probe.safetensors"


def _positions(encoder: Encoder, frozen: bool) -> str | None:
    if encoder.positions is None:
        return "relative"
    return "sincos" if frozen else "learned"


def segmenter_file(folder: Path) -> Path:
    """Write ``segmenter.safetensors`` with random weights, for windows of 32 x 40 px."""
    model = UperNet(encoder_of((32, 40)), len(CLASSES), mean=MEAN, std=STD, channels=16)
    with torch.no_grad():
        randomize(model)
    folder.mkdir()
    save_segmenter(folder / "segmenter.safetensors", model, CLASSES, Inference(32, "slide", (32, 40), (16, 20)))
    return folder


def photographs(size: tuple[int, int]) -> Tensor:
    """Return photographs of scikit-image, uint8 ``[B, 3, H, W]``: an astronaut, a cat, a cup, a rocket, and parts."""
    crops = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        picture = torch.from_numpy(np.ascontiguousarray(getattr(skimage.data, name)())).permute(2, 0, 1)[None].float()
        half = picture[:, :, : picture.shape[2] // 2, : picture.shape[3] // 2]
        crops += [F.interpolate(part, size=size, mode="bicubic", antialias=True) for part in (picture, half)]
    return torch.cat(crops).clamp(0, 255).byte()
