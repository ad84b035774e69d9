"""Early stopping: the weights of the best evaluation, and when a training ends because no better one comes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hardpatch import __version__
from hardpatch.files import atomic_path
from hardpatch.interchange.finetuned import BEST
from hardpatch.pickles import save_tensors
from hardpatch.processes import is_first, on_first
from hardpatch.train import checkpoint
from hardpatch.train.metrics import read_metrics


def save_network(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a network in a way that :func:`hardpatch.finetune.file.load_classifier` can load."""
    tensors = {f"student.{name}": value for name, value in model.state_dict().items()}
    with atomic_path(path) as partial:
        save_tensors(tensors, partial, {"hardpatch": json.dumps({"hardpatch": __version__, **metadata})})


class EarlyStopping:
    """Best evaluation of a run, and the number of evaluations since.

    All of it is read back from the run folder, so that a resumed run stops where an uninterrupted one does.

    Args:
        folder: of the run.
        patience: evaluations without a better one after which the run ends.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        self.folder, self.patience = folder, patience
        self.best: tuple[int, float] | None = None
        """step and score"""
        self.evaluated: set[int] = set()
        """steps"""

    @property
    def file(self) -> Path:
        """File of the best weights."""
        return self.folder / BEST

    def restore(self, step: int) -> None:
        """Read what was found up to a step."""
        self.evaluated, self.best = on_first(lambda: self._read(step))

    def _read(self, step: int) -> tuple[set[int], tuple[int, float] | None]:
        rows = read_metrics(self.folder / "metrics.jsonl")
        evaluated = {row["step"] for row in rows if "val_loss" in row and row["step"] <= step}
        if not self.file.is_file():
            return evaluated, None
        metadata = checkpoint.read_metadata(self.file) or {}
        return evaluated, (metadata["step"], metadata["score"])

    def update(self, step: int, score: float, model: nn.Module, metadata: Mapping[str, Any]) -> None:
        """Take note of an evaluation, and write the weights if it is the best; called in all processes."""
        self.evaluated.add(step)
        # an evaluation that is repeated after a resume writes the same weights again
        if self.best is None or score > self.best[1] or step == self.best[0]:
            self.best = step, score
            if is_first():
                save_network(self.file, model, {**metadata, "step": step, "score": score})

    @property
    def stops(self) -> bool:
        """True if the training is to end."""
        return self.best is not None and sum(step > self.best[0] for step in self.evaluated) >= self.patience
