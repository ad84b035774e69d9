"""Run folders with random weights, written without training."""

from pathlib import Path
from typing import Any

import torch

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.methods.hpm import HPM
from hardpatch.train.saving import take_snapshot, write

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SMALL = {"width": 32, "depth": 2, "heads": 4, "patch_size": 4}
"""An encoder with another number of heads than the default for its width."""


def run_of(folder: Path, host: str = "mae", *, teacher: bool = True, **changes: dict[str, Any]) -> Path:
    """Write the checkpoint of a run, whose parameters are the initial ones plus noise.

    ``changes`` are settings by section; a ``model`` with a size replaces :data:`SMALL`.
    """
    channels = changes.get("data", {}).get("channels", 3)
    mean, std = (MEAN * channels)[:channels], (STD * channels)[:channels]
    model = {"decoder_width": 16, "decoder_heads": 2, "decoder_depth": 2}
    if "size" not in changes.get("model", {}):
        model = model | SMALL
    values: dict[str, dict[str, Any]] = {
        "data": {"image_size": 16, "mean": list(mean), "std": list(std)},
        "model": model,
        "method": {"host": host},
    }
    run = config.build(
        {"steps": 1, **changes} | {section: settings | changes.get(section, {}) for section, settings in values.items()}
    )
    outputs = run.model.width if run.method.target == "teacher" else None

    def noisy(seed: int) -> HPM:
        generator = torch.Generator().manual_seed(seed)
        model = initial_model(run, mean, std, outputs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        return model

    student = noisy(1)
    teacher_model = noisy(2) if teacher else None
    if teacher_model is not None:
        for name in teacher_model.host.reconstruction_only:
            setattr(teacher_model.host, name, None)
    snapshot = take_snapshot(
        1,
        student=student,
        teacher=teacher_model,
        optimizer=torch.optim.SGD(student.parameters()),
        metadata={"config": config.to_dict(run), "mean": mean, "std": std, "outputs": outputs, "step": 1},
        scaler={},
        copied=False,
    )
    write(folder / "checkpoints", snapshot, keep=1)
    return folder
