"""Linear probe from which a fine-tuning begins (Kumar et al. 2022, LP-FT): first the last layer, then all of them.

The probe is that of :mod:`hardpatch.measure.linear`, on the features that the network has before its last layer. Its
batch norm is written into the layer norm of the network, so that the network begins exactly as the probe.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source, Subset
from hardpatch.errors import UserError
from hardpatch.finetune.early import save_network
from hardpatch.finetune.file import load_classifier
from hardpatch.finetune.measure import ClassifierEvaluation, whole_image
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.settings import FinetuneSettings
from hardpatch.finetune.trainer import FinetuneJob, describe
from hardpatch.interchange.finetuned import PROBE
from hardpatch.measure.features import Features, ProgressCallback
from hardpatch.measure.linear import BASE_LRS, LinearHeads, train_heads
from hardpatch.processes import on_first
from hardpatch.train import checkpoint
from hardpatch.train.device import loader_workers
from hardpatch.train.progress import counting

log = logging.getLogger("hardpatch")

SPLITS, SMALL_SET = 5, 10_000
"""Splits over which the accuracies are averaged to pick a learning rate, and images from which one is enough."""


class Probe(NamedTuple):
    """Linear layers on frozen features."""

    part: LinearHeads
    """trained without the held-out images, one for each of :data:`~hardpatch.measure.linear.BASE_LRS`"""
    best: int
    """position in ``part`` of the layer with the best accuracy on images that it did not learn from"""
    held_out_top1: float
    """mean accuracy of the layers with its learning rate over all splits, each on the images that it held out"""
    held_out_images: int
    """number of images over which this is the mean; an image counts in each split that holds it out"""
    whole: LinearHeads
    """trained on all images with its learning rate"""

    @property
    def base_lr(self) -> float:
        """Learning rate of the best layer, for 256 images per step."""
        return BASE_LRS[self.best]


def hold_out(labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split images into those to learn from and those to hold out, the same share of every class as nearly as can be.

    Every class keeps an image to learn from, and at least one image is held out.

    Args:
        labels: class of each image.
        share: of the images that are held out.
        seed: of the draw.

    Returns:
        Indices of both, in ascending order.

    Raises:
        UserError: if no class has two images.
    """
    members = defaultdict[int, list[int]](list)
    for index in np.random.default_rng(seed).permutation(len(labels)).tolist():
        members[labels[index]].append(index)
    held_out, due = list[int](), 0.0
    for label in sorted(members):
        due = min(due, 1.0) + share * len(members[label])
        count = min(int(due), len(members[label]) - 1)
        held_out += members[label][:count]
        due -= count
    held_out = held_out or max(members.values(), key=len)[1:2]
    if not held_out:
        raise UserError(
            f"--train: expected two images or more of some class, to hold one out, got {len(labels)} of as many "
            "classes; --preset tiny trains without holding out"
        )
    return sorted(set(range(len(labels))) - set(held_out)), sorted(held_out)


@torch.inference_mode()
def features(
    model: Classifier,
    source: Source,
    fabric: Fabric,
    *,
    size: tuple[int, int],
    batch_size: int,
    workers: int,
    progress: ProgressCallback,
) -> Features:
    """Return what the last layer of a network sees of each image of a set.

    Args:
        model: in eval mode, on the device.
        source: labeled images.
        fabric: device and precision.
        size: (height, width) of the images in pixels.
        batch_size: images at once.
        workers: processes that decode.
        progress: called with the images done and all.
    """
    vectors, labels, indices, bad = [], [], [], []
    for batch in eval_batches(source, whole_image(size, model), batch_size=batch_size, workers=workers):
        with fabric.autocast():
            encoded = model.features(model.normalize(batch.images.to(fabric.device)))
            vectors.append(model.fc_norm(encoded).float().cpu())
        labels.append(batch.labels)
        indices.append(batch.indices)
        bad.extend(batch.bad)
        progress(int(batch.indices[-1]) + 1, len(source))
    return Features(torch.cat(vectors), torch.cat(labels), bad, torch.cat(indices))


def fit_probe(known: Features, held_out: list[int], classes: int, fabric: Fabric, *, share: float, seed: int) -> Probe:
    """Train linear layers on :func:`features`, and pick the learning rate on images that they do not learn from.

    For a small set the accuracies of several random splits are averaged, of which ``held_out`` is one.

    Args:
        known: features of the training set.
        held_out: indices of the images of that set that are held out.
        classes: number of classes.
        fabric: device.
        share: of the images that the other splits hold out.
        seed: of these splits, of the first weights and of the order of the images.
    """

    def trained(images: Features, base_lrs: Sequence[float]) -> LinearHeads:
        generator = torch.Generator().manual_seed(seed)
        return train_heads(images, classes=classes, generator=generator, base_lrs=base_lrs, device=fabric.device)[0]

    labels = known.labels.tolist()
    splits = [torch.isin(known.indices, torch.tensor(held_out))]
    for number in range(1, SPLITS if len(labels) < SMALL_SET else 1):
        out = torch.zeros(len(labels), dtype=torch.bool)
        out[hold_out(labels, share, seed + number)[1]] = True
        splits.append(out)
    layers, rows = [], []
    for out in splits:
        layers.append(trained(_where(known, ~out), BASE_LRS))
        rows.append(layers[-1].rows(BASE_LRS, _where(known, out)))
    best = max(range(len(BASE_LRS)), key=lambda k: sum(row[k].top1 for row in rows))
    whole = trained(known, [BASE_LRS[best]])
    whole.norm.eval()
    counts = [int(out.sum()) for out in splits]
    correct = sum(row[best].top1 * count for row, count in zip(rows, counts, strict=True))
    return Probe(layers[0], best, correct / sum(counts), sum(counts), whole)


def _where(known: Features, chosen: Tensor) -> Features:
    return Features(known.features[chosen], known.labels[chosen], [], known.indices[chosen])


@torch.no_grad()
def install(model: Classifier, heads: LinearHeads, index: int) -> None:
    """Make a network classify as a linear layer on the features of its encoder does.

    Args:
        model: as it was when the features were computed; its norm and last layer are changed.
        heads: the layers, and their batch norm.
        index: number of the layer.
    """
    norm, target = heads.norm, model.fc_norm
    assert isinstance(target, nn.LayerNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    target.weight.copy_(scale)
    target.bias.copy_(-norm.running_mean * scale)
    model.head.weight.copy_(heads.weights[index])
    model.head.bias.copy_(heads.biases[index])


def hold_out_of(train: Source, run: FinetuneSettings) -> tuple[Source, Subset | None]:
    """Return the images that a run learns from, and those that it holds out; None if it does not begin with a probe."""
    if not run.probes:
        return train, None
    labels = [train.label(k) for k in range(len(train))]
    learned_from, held_out = hold_out([label for label in labels if label is not None], run.held_out, run.seed)
    return Subset(train, learned_from), Subset(train, held_out)


def start_from_probe(job: FinetuneJob, train: Source, held_out: Subset, *, quiet: bool) -> None:
    """Write the probe that all images give, and let a run begin from the one of the images that it learns from.

    Args:
        job: before its first step.
        train: all images of ``--train``.
        held_out: those that the run does not learn from.
        quiet: show no progress.
    """
    job.whole_model.gather()
    on_first(lambda: _write_probe(job, train, held_out, quiet))
    job.whole_model.put_back()
    job.model.train()
    if job.average is not None:
        job.average.set(job.model)


def _write_probe(job: FinetuneJob, train: Source, held_out: Subset, quiet: bool) -> None:
    """Train both probes; the network is left with the one to begin from."""
    run, model, fabric = job.run, job.whole_model.current, job.fabric
    with nullcontext(lambda done, total: None) if quiet else counting("features") as progress:
        known = features(
            model.eval(),
            train,
            fabric,
            size=job.image_size,
            batch_size=run.batch_size,
            workers=loader_workers(run.workers),
            progress=progress,
        )
    BadFiles(len(train), run.max_bad_fraction, "--max_bad_fraction", source=train).update(known.bad)
    probe = fit_probe(known, list(held_out.indices), len(job.classes), fabric, share=run.held_out, seed=run.seed)
    install(model, probe.whole, 0)
    result = job.classify(job.val, job.val_labels, model)
    numbers = {
        "top1": result.top1,
        "top5": result.top5,
        "held_out_top1": probe.held_out_top1,
        "held_out_images": probe.held_out_images,
        "base_lr": probe.base_lr,
    }
    save_network(job.folder / PROBE, model, {**describe(run, model, job.classes, job.image_size), "probe": numbers})
    log.info("probe: top-1 %.2f%% on --val; its learning rate was picked on parts of --train", 100 * result.top1)
    install(model, probe.part, probe.best)


def choose(job: FinetuneJob, held_out: Source) -> tuple[ClassifierEvaluation, dict[str, Any]]:
    """Choose between the probe of a finished run and the network that was trained from there.

    The network is kept if it is better on the held-out images by more than a standard error.

    Returns:
        The result on the validation images of the one that is kept, and for ``result.json`` the numbers of both.
    """
    file = job.folder / PROBE
    probe = (checkpoint.read_metadata(file) or {})["probe"]
    numbers: dict[str, Any] = {"kept": "probe", "probe": probe, "fine_tuned": None}
    if not job.run.probe_only:
        assert isinstance(job.evaluation, ClassifierEvaluation)
        trained = job.classify(held_out, torch.arange(len(job.classes)))
        numbers["fine_tuned"] = {
            "top1": job.evaluation.top1,
            "top5": job.evaluation.top5,
            "held_out_top1": trained.top1,
        }
        known = ((probe["held_out_top1"], probe["held_out_images"]), (trained.top1, trained.images))
        error = math.sqrt(sum(top1 * (1 - top1) / images for top1, images in known))
        numbers["standard_error"] = error
        if trained.top1 - probe["held_out_top1"] > error:
            return job.evaluation, numbers | {"kept": "fine-tuned"}
    return job.classify(job.val, job.val_labels, load_classifier(file).model.to(job.fabric.device)), numbers
