"""Settings that several scales share, or that are too many to read in the middle of one."""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]
"""Values by dotted name, as in ``{"optim.warmup": 0.1}``."""

# Settings of the hosts that hold at any image size. Those that depend on it follow in each scale.
SIMMIM: Settings = {
    "model.positions": "relative",
    "model.layer_scale": 0.1,
    "method.mask_ratio": 0.6,
    "optim.betas": [0.9, 0.999],
}
BEIT: Settings = {
    "model.positions": "relative",
    "model.layer_scale": 0.1,
    "method.mask": "block",
    "method.mask_ratio": 0.4,
    "optim.betas": [0.9, 0.98],
    "optim.clip": 3.0,
}
IBOT: Settings = {
    "model.positions": "learned",
    "method.mask": "block",
    "method.mask_ratio": 0.3,
    "method.mask_ratio_spread": 0.2,
    "method.momentum_start": 0.996,
    "method.momentum_end": 1.0,
    "method.momentum_warmup": 1.0,
    "method.momentum_schedule": "cosine",
    "data.crop_scale": [0.32, 1.0],
    "ibot.teacher_temperature_warmup": 0.1,
    "ibot.frozen_last_layer": 0.01,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.betas": [0.9, 0.999],
    "optim.warmup": 0.05,  # 10 of 200 effective epochs
    "optim.clip": 3.0,
}

# Model, optimizer and length of scale cpu; docs/results.md says how they were found.
CPU: Settings = {
    "data.workers": 0,
    "data.in_memory": "host",
    "model.width": 96,
    "model.depth": 4,
    "model.heads": 4,
    "model.decoder_width": 48,
    "model.decoder_depth": 2,
    "model.decoder_heads": 4,
    "method.momentum_start": 0.95,
    "method.momentum_end": 0.995,
    "optim.lr": 1e-3,
    "steps": 800,
    "batch_size": 64,
}
MICRO_DETECT: Settings = {
    "preset": "hpm",
    "epochs": None,
    "steps": 2,
    "batch_size": 2,
    "image_size": 64,
    "window": 4,
    "global_blocks": 2,
    "channels": 8,
    "head_width": 16,
    "rois": 8,
    "anchor_scale": 4.0,
    "jitter": (0.8, 1.25),
}
MICRO_SEGMENT: Settings = {
    "preset": "hpm",
    "steps": 2,
    "batch_size": 2,
    "warmup_steps": 1,
    "short_side": 32,
    "crop": (32, 32),
    "stride": (16, 16),
    "channels": 8,
}
