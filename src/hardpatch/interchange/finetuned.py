"""Networks that ``finetune``, ``segment`` and ``detect`` have trained: their kind, their classes, their encoder."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safetensors import SafetensorError, safe_open

from hardpatch.choices import WeightsName
from hardpatch.data.reading import read_reading
from hardpatch.errors import UserError
from hardpatch.methods.encoder_only import EncoderOnly
from hardpatch.methods.hpm import HPM
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.train.result import RESULT
from hardpatch.weights import check_normalization, described, fitted, parse_metadata, stored_tensors

Kind = Literal["classifier", "segmenter", "detector"]
"""``kind`` in the metadata of weights that are no pre-training run's"""
VERBS: dict[Kind, str] = {"classifier": "finetune", "segmenter": "segment", "detector": "detect"}
"""Verb that trains each kind, and name of its settings in the metadata."""
ENCODERS: dict[Kind, str] = {"classifier": "encoder.", "segmenter": "encoder.", "detector": "backbone.encoder."}
"""Prefix of the encoder's tensors in each kind."""
PROBE = "probe.safetensors"
"""File of a run folder of ``finetune``: the classifier that the run begins with."""
BEST = "best.safetensors"
"""File of a run folder of ``finetune`` with patience: the weights of the best evaluation."""
SEGMENTER = "segmenter.safetensors"
"""File of a finished run folder of ``segment``."""
SEGMENTER_METADATA = "hardpatch_segmenter"
"""Entry in the metadata of that file, by which it is recognized."""

log = logging.getLogger("hardpatch")
_said: set[str] = set()


class FineTuned(NamedTuple):
    """Description of the weights file of a fine-tuned network."""

    kind: Kind
    classes: tuple[str, ...]
    metadata: dict[str, Any]
    prefix: str
    """of the names of the tensors of the network that was evaluated: the moving average if there is one"""

    @property
    def training(self) -> Mapping[str, Any]:
        """Settings of the training; empty where the file does not hold them."""
        values = self.metadata.get(VERBS[self.kind])
        return values if isinstance(values, dict) else {}


def read_result(folder: Path) -> dict[str, Any]:
    """Return the content of a run folder's ``result.json``; empty if it has none that can be read."""
    try:
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def result_files(folder: Path) -> tuple[str, ...]:
    """Return the names of files that a run folder has as its result, beside its checkpoints; they need not exist.

    A run of ``finetune`` may have kept its probe rather than the network that was trained from there, or the weights of
    its best evaluation.
    """
    result = read_result(folder)
    kept = PROBE if result.get("kept") == "probe" else BEST if result.get("best_weights") else None
    return (SEGMENTER,) if kept is None else (kept, SEGMENTER)


def read_finetuned(path: Path) -> FineTuned | None:
    """Read what a weights file says of itself; None if it is no fine-tuned network of this package.

    Raises:
        UserError: if a ``.safetensors`` file is broken, or its metadata is.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            entries = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"RUN: {path} is not a safetensors file: {error}") from None
    if SEGMENTER_METADATA in entries:
        metadata, prefix = parse_metadata(entries[SEGMENTER_METADATA], path) | {"kind": "segmenter"}, ""
    else:
        metadata = parse_metadata(entries.get("hardpatch", "{}"), path)
        averaged = any(name.startswith("teacher.") for name in stored_tensors(path))
        prefix = "teacher." if averaged else "student."
    if metadata.get("kind") not in get_args(Kind):
        return None
    with described(path):
        names = [name for _, name in metadata["categories"]] if "categories" in metadata else metadata["classes"]
        return FineTuned(metadata["kind"], tuple(map(str, names)), metadata, prefix)


def load_encoder(path: Path, found: FineTuned, weights: WeightsName = "student") -> HPM:
    """Load the encoder of a fine-tuned network as a model that encodes only, and say once what is left out.

    Its tokens are those of the encoder inside a classifier, which has no norm after its last block, and inside a
    segmenter, with the last norm of the pre-training, which a segmenter does not use.

    Args:
        path: the file.
        found: what :func:`read_finetuned` returned.
        weights: ``student`` is the network that was evaluated; so is ``teacher``, where there is a moving average.

    Raises:
        UserError: for other weights, or if the file is broken.
    """
    if weights == "random":
        raise UserError(f"--weights random: {path} is a {found.kind}, which began with other weights; take those")
    if weights == "teacher" and found.prefix != "teacher.":
        raise UserError(f"weights: expected those of the student, {path} has no others; got {weights!r}")
    prefix = found.prefix + ENCODERS[found.kind]
    names = [name for name in stored_tensors(path) if name.startswith(prefix)]
    # relative positions within windows, which a detector adds, have no place in an encoder of whole images
    windows = [name for name in names if ".attn.positions." in name]

    encoder = fitted(
        lambda: _encoder(found.metadata["encoder"], final_norm=f"{prefix}norm.weight" in names),
        *(path, found.metadata, prefix),
        left_out=windows,
    )
    with described(path):
        check_normalization(found.metadata)
        mean, std, reading = found.metadata["mean"], found.metadata["std"], read_reading(found.metadata)
        model = HPM(EncoderOnly(encoder), None, mean=mean, std=std, reading=reading)
    _say(path, found, windows=bool(windows))
    return model


def _encoder(settings: Mapping[str, Any], *, final_norm: bool) -> Encoder:
    """Build the encoder of a fine-tuned network, with new weights; a classifier replaces its last norm."""
    variant = dict(settings.get("variant", {}))
    return build_encoder({**settings, "variant": variant if final_norm else variant | {"final_norm": False}})


def _say(path: Path, found: FineTuned, *, windows: bool) -> None:
    line = f"{path}: the encoder of a {found.kind} of {len(found.classes)} classes, without its head"
    if found.kind == "detector":
        line += (
            "; it was trained on windows of patches without a class token, and encodes the whole image with one here"
        )
    if windows:
        line += "; its relative positions within windows are left out"
    if line not in _said:
        _said.add(line)
        log.info("%s", line)
