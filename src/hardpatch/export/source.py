"""Sources of an export: a pre-training run, weights of another library, or a network that was fine-tuned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

import torch

from hardpatch.choices import Architecture
from hardpatch.data.reading import Reading
from hardpatch.errors import UserError
from hardpatch.export.network import Head
from hardpatch.finetune.file import load_classifier
from hardpatch.finetune.model import Classifier
from hardpatch.interchange.backbone import Backbone
from hardpatch.interchange.finetuned import FineTuned, Kind, read_finetuned
from hardpatch.interchange.load import load, read_newest
from hardpatch.methods.hpm import HPM
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import absorb_class_position

Weights = Literal["auto", "student", "teacher"]


class Source(NamedTuple):
    """Network to export, in eval mode and without gradients."""

    encoder: Encoder
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...]
    reading: Reading
    kind: Kind | None
    """of a fine-tuned network"""
    model: HPM | Classifier
    """the network itself; of a segmenter or detector, its encoder"""
    head: Head | None = None
    """of a classifier"""
    notes: tuple[str, ...] = ()
    """lines about what is left out"""

    @property
    def backbone(self) -> Backbone:
        """Encoder and preprocessing."""
        return Backbone(self.encoder, self.mean, self.std, self.reading)


def load_source(run: str | Path, weights: Weights, **architecture: Unpack[Architecture]) -> Source:
    """Load what is exported, with the tensors of its file as they are.

    Args:
        run: anything that :func:`hardpatch.load` reads, or a run folder of ``finetune``, ``segment`` or ``detect``.
        weights: which weights of the run.
        architecture: what the file does not say.

    Raises:
        UserError: if there is nothing to load.
    """
    finetuned = read_newest(run, read_finetuned)
    if finetuned is not None and finetuned.kind == "classifier":
        return _classifier(run, finetuned, weights)
    model = load(run, weights, **architecture)
    encoder = model.host.encoder
    encoder.mask_token = None
    notes: tuple[str, ...] = ()
    if finetuned is not None:
        other = "; --to onnx holds all of it" if finetuned.kind == "segmenter" else ""
        notes = (f"only the encoder of the {finetuned.kind} goes, without its {len(finetuned.classes)} classes{other}",)
    kind = None if finetuned is None else finetuned.kind
    return Source(encoder, *_normalization(model), model.reading, kind, model, notes=notes)


def check_average(run: str | Path, found: FineTuned, weights: Weights) -> None:
    """Refuse the moving average of a fine-tuned network that has none.

    Raises:
        UserError: if ``weights`` asks for it.
    """
    if weights == "teacher" and found.prefix != "teacher.":
        raise UserError(f"--weights: {run} has no moving average of its {found.kind}; leave it out")


def _classifier(run: str | Path, found: FineTuned, weights: Weights) -> Source:
    check_average(run, found, weights)
    model, classes, _ = load_classifier(run)
    model = model.eval().requires_grad_(False)
    weight, bias = model.head.weight.detach(), model.head.bias.detach()
    notes: tuple[str, ...] = ()
    if model.target_mean is not None and model.target_std is not None:  # the outputs get the units of the data
        weight, bias = weight * model.target_std[:, None], bias * model.target_std + model.target_mean
        notes = (f"a regression: its outputs are {', '.join(classes)}, in the units of the data",)
    elif model.task == "multilabel":
        notes = ("several labels an image: the sigmoid of each output is the probability of its label",)
    norm = model.fc_norm
    if not isinstance(norm, torch.nn.LayerNorm):  # the batch norm of a linear probe has no parameters
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight = weight / (norm.running_var + norm.eps).sqrt()
        bias = bias - weight @ norm.running_mean
    head = Head(model.pool, norm if isinstance(norm, torch.nn.LayerNorm) else None, weight, bias, classes)
    absorb_class_position(model.encoder)
    return Source(model.encoder, *_normalization(model), model.reading, "classifier", model, head, notes)


def _normalization(model: HPM | Classifier) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return rounded(model.mean.tolist()), rounded(model.std.tolist())


def rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Round to the precision of float32: 0.485 for 0.48500001430511475."""
    return tuple(float(f"{value:.7g}") for value in values)
