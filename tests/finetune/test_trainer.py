"""The fine-tuning job: learning rates of its optimizer, and its evaluation against a plain loop."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hardpatch.data.augment import EvalTransform
from hardpatch.data.sources import Subset, open_source
from hardpatch.finetune.measure import ClassifierEvaluation
from hardpatch.finetune.settings import FinetuneSettings
from hardpatch.finetune.trainer import FinetuneJob
from hardpatch.train.device import start_fabric
from tests.finetune.small import small_classifier

IMAGES = 40


def small_job(folder: Path, **settings: object) -> FinetuneJob:
    """Build a job on some images of the embedded set, of 10 classes; 5 steps are an epoch."""
    run = FinetuneSettings(**{"batch_size": 8, "epochs": 10, "warmup_epochs": 2, "workers": 0, **settings})  # type: ignore[arg-type]
    source = Subset(open_source("demo:train"), list(range(0, 10 * IMAGES, 10)))
    assert source.classes is not None
    model = small_classifier(10)
    fabric = start_fabric("cpu", "fp32", "--")
    return FinetuneJob(run, folder, source, source, source.classes, torch.arange(10), model, fabric)


@pytest.mark.parametrize(("weights", "layer_decay"), [("student", 0.8), ("random", 1.0)])
def test_learning_rates(weights: str, layer_decay: float, tmp_path: Path) -> None:
    job = small_job(tmp_path, weights=weights, lr=0.01, min_lr=0.002, log_every=1)
    optimizer, rates = job.state.optimizer, []
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert sorted(scales) == pytest.approx(sorted({layer_decay**k for k in range(5)}))  # 3 blocks, below and above
    batches = job.batches()
    for _ in range(12):
        job.train_step(next(batches))
        rates.append(job.metrics()["lr"])
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(rates[-1] * group["lr_scale"])
    batches.close()
    assert rates[:11] == pytest.approx([0.001 * step for step in range(11)])  # 2 epochs are 10 steps
    assert 0.002 < rates[11] < 0.01
    assert job._learning_rate(30) == pytest.approx((0.01 + 0.002) / 2)  # half of the cosine
    assert job._learning_rate(50) == pytest.approx(0.002)


def test_evaluation_step_by_step(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    torch.nn.init.normal_(job.model.head.weight)
    metrics = job.evaluate()
    model = job.model.eval()
    pixels = torch.stack([EvalTransform((16, 24))(job.source.image(k)) for k in range(IMAGES)])
    labels = torch.tensor([job.source.label(k) for k in range(IMAGES)])
    scores = model(model.normalize(pixels))
    ranks = (scores > scores.gather(1, labels[:, None])).sum(dim=1)
    assert metrics["top1"] == pytest.approx((ranks == 0).float().mean().item())
    assert metrics["top5"] == pytest.approx((ranks < 5).float().mean().item())
    assert 0 < metrics["top1"] < metrics["top5"] < 1
    assert metrics["val_loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-4)
    assert isinstance(job.evaluation, ClassifierEvaluation)
    expected = torch.zeros(10, 10, dtype=torch.int64)
    for label, prediction in zip(labels.tolist(), scores.argmax(dim=1).tolist(), strict=True):
        expected[label, prediction] += 1
    assert torch.equal(job.evaluation.confusion, expected)


def test_the_average_is_evaluated(tmp_path: Path) -> None:
    job = small_job(tmp_path, ema=0.9)
    assert job.average is not None
    assert job.evaluated_model is job.average.module
    before = job.evaluated_model.head.weight.clone()
    batches = job.batches()
    for _ in range(3):
        job.train_step(next(batches))
    batches.close()
    assert not torch.equal(job.evaluated_model.head.weight, before)
    assert not torch.equal(job.evaluated_model.head.weight, job.model.head.weight)
