"""Class weights against a loss by hand, and balanced sampling: shares, resume, several processes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hardpatch.data.order import TrainingOrder
from hardpatch.data.sources import Subset, open_source
from hardpatch.errors import UserError
from hardpatch.finetune.balance import image_weights, loss_weights
from hardpatch.finetune.objective import ClassObjective
from hardpatch.finetune.settings import FinetuneSettings, of_task
from tests.finetune.test_trainer import small_job

COUNTS = torch.tensor([1, 3, 0, 4])
NAMES = ("ant", "bee", "cat", "dog")


def test_the_weighted_loss_by_hand() -> None:
    run = FinetuneSettings(class_weights=("bee=3", "dog=0.5"), mixup=0, cutmix=0, smoothing=0)
    objective = ClassObjective(run, NAMES, COUNTS, torch.arange(4))
    scores, labels = torch.tensor([[0.1, 2.0, 0.3, -1.0], [1.0, 0.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0]]), [1, 3, 0]
    _, targets = objective.prepare(torch.zeros(3, 3, 4, 4), torch.tensor(labels), 0)
    each = [-scores[k].log_softmax(0)[label].item() for k, label in enumerate(labels)]
    assert objective.loss(scores, targets) == pytest.approx((3 * each[0] + 0.5 * each[1] + each[2]) / 3)


def test_balanced_weights_are_one_on_average() -> None:
    weights = loss_weights(["balanced"], NAMES, COUNTS)
    assert weights is not None
    assert weights[[0, 1, 3]].tolist() == pytest.approx([8 / 3, 8 / 9, 8 / 12])
    assert float((weights * COUNTS).sum()) == pytest.approx(8)
    assert loss_weights(None, NAMES, COUNTS) is None
    assert of_task({"class_weights": {"bee": 2}})["class_weights"] == ("bee=2",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("bea=2", "has no class 'bea'; did you mean 'bee'"),
        ("bee", "expected balanced or NAME=WEIGHT"),
        ("bee=-1", "expected a number from 0 for 'bee', got '-1'"),
        ("bee=nan", "expected a number from 0"),
    ],
)
def test_weights_that_are_none(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loss_weights([given], NAMES, COUNTS)


def taken(order: TrainingOrder, batches: int) -> np.ndarray[Any, Any]:
    return np.concatenate(list(itertools.islice(order, batches)))


def test_balanced_draws_resume_and_join_over_processes() -> None:
    weights = np.array([1.0, 1.0, 8.0, 0.0])
    whole = taken(TrainingOrder(4, 6, 3, 0, 0, 1, weights=weights), 400)
    assert np.array_equal(whole[:, 0], np.arange(2400))  # each draw has its own random crop
    assert np.array_equal(taken(TrainingOrder(4, 6, 3, 7, 0, 1, weights=weights), 2), whole[42:54])
    ranks = [taken(TrainingOrder(4, 6, 3, 0, rank, 2, weights=weights), 5).reshape(5, 3, 2) for rank in range(2)]
    assert np.array_equal(np.concatenate(ranks, axis=1).reshape(-1, 2), whole[:30])
    shares = np.bincount(whole[:, 1], minlength=4) / 2400
    assert shares == pytest.approx([0.1, 0.1, 0.8, 0.0], abs=0.03)


def test_a_balanced_job_draws_all_classes_equally_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    source = open_source("demo:train")
    labels = [source.label(k) for k in range(60)]
    weights = image_weights(Subset(source, range(60)), 10)
    assert weights.tolist() == [1 / labels.count(label) for label in labels]
    job = small_job(tmp_path, sampling="balanced", batch_size=8)
    batches = job.batches()
    first = [next(batches) for _ in range(4)]
    batches.close()
    job.step = 2
    again = job.batches()
    for expected in first[2:]:
        batch = next(again)
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.indices, expected.indices)
    again.close()
