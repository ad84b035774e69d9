"""Run folders with random weights, without training."""

from pathlib import Path
from typing import Any

import torch

from hardpatch.methods.hpm import HPM
from hardpatch.pretrain import config
from hardpatch.pretrain.build import initial_model
from hardpatch.train import checkpoint

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SMALL = {"width": 32, "depth": 2, "heads": 4, "patch_size": 4}
"""An encoder whose heads are not those that its width suggests."""


def run_of(folder: Path, host: str = "mae", *, teacher: bool = True, **changes: dict[str, Any]) -> Path:
    """Write the checkpoint of a run; every parameter is noise around its first value, the teacher's is other noise.

    ``changes`` are settings, section by section; a ``model`` with a size has that instead of :data:`SMALL`.
    """
    channels = changes.get("data", {}).get("channels", 3)
    mean, std = MEAN[:channels], STD[:channels]
    model = {"decoder_width": 16, "decoder_heads": 2, "decoder_depth": 2}
    if "size" not in changes.get("model", {}):
        model = model | SMALL
    values: dict[str, dict[str, Any]] = {
        "data": {"image_size": 16, "mean": list(mean), "std": list(std)},
        "model": model,
        "method": {"host": host},
    }
    run = config.build(
        {"steps": 1} | {section: settings | changes.get(section, {}) for section, settings in values.items()}
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
    follower = noisy(2) if teacher else None
    for name in () if follower is None else follower.host.reconstruction_only:
        setattr(follower.host, name, None)  # type: ignore[union-attr]
    checkpoint.save(
        folder / "checkpoints",
        1,
        student=student,
        teacher=follower,
        optimizer=torch.optim.SGD(student.parameters()),
        metadata={"config": config.to_dict(run), "mean": mean, "std": std, "outputs": outputs, "step": 1},
        scaler={},
        keep=1,
    )
    return folder
