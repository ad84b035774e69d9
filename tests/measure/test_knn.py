import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hardpatch.errors import UserError
from hardpatch.measure import knn
from hardpatch.measure.features import Features
from hardpatch.measure.knn import KnnResult, KnnRow, knn_accuracy


def labeled(features: list[list[float]], labels: list[int]) -> Features:
    return Features(torch.tensor(features), torch.tensor(labels), [], torch.arange(len(labels)))


def random_features(images: int, width: int, classes: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, width, generator=generator)
    return Features(features, torch.randint(classes, (images,), generator=generator), [], torch.arange(images))


def accuracy_by_loops(train: Features, val: Features, k: int, temperature: float) -> tuple[float, float]:
    """Compute the accuracy by its definition, one number at a time, in double precision."""
    correct1 = correct5 = 0
    for query, label in zip(val.features.double(), val.labels.tolist(), strict=True):
        neighbors = []
        for neighbor, neighbor_label in zip(train.features.double(), train.labels.tolist(), strict=True):
            cosine = float(query @ neighbor / (query.norm() * neighbor.norm()))
            neighbors.append((cosine, neighbor_label))
        neighbors.sort(reverse=True)
        votes: dict[int, float] = {}
        for cosine, neighbor_label in neighbors[:k]:
            votes[neighbor_label] = votes.get(neighbor_label, 0.0) + math.exp(cosine / temperature)
        ranking = sorted(votes, key=lambda name: -votes[name])
        correct1 += ranking[0] == label
        correct5 += label in ranking[:5]
    return correct1 / len(val.labels), correct5 / len(val.labels)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 40),
    queries=st.integers(1, 12),
    classes=st.integers(1, 9),
    ks=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    temperature=st.sampled_from([0.07, 0.5]),
)
def test_accuracy_equals_that_of_plain_loops(
    seed: int, images: int, queries: int, classes: int, ks: list[int], temperature: float
) -> None:
    train, val = random_features(images, 6, classes, seed), random_features(queries, 6, classes, seed + 1)
    result = knn_accuracy(train, val, classes=classes, ks=ks, temperature=temperature)
    assert [row.k for row in result.rows] == sorted({min(k, images) for k in ks})
    for row in result.rows:
        assert (row.top1, row.top5) == pytest.approx(accuracy_by_loops(train, val, row.k, temperature))


def dino_knn_classifier(train: Features, val: Features, k: int, classes: int) -> tuple[float, float]:
    """DINO's rule, one query at a time: normalize, take the k largest products, add exp(product / 0.07) by class."""
    correct = [0, 0]
    for query, label in zip(val.features, val.labels.tolist(), strict=True):
        products = F.normalize(train.features, dim=1) @ F.normalize(query, dim=0)
        nearest = products.argsort(descending=True)[:k]
        scores = torch.zeros(classes)
        for index in nearest.tolist():
            scores[train.labels[index]] += math.exp(products[index] / 0.07)
        ranking = scores.argsort(descending=True).tolist()
        correct[0] += ranking[0] == label
        correct[1] += label in ranking[:5]
    return correct[0] / len(val.labels), correct[1] / len(val.labels)


def test_figures_are_those_of_dino() -> None:
    torch.manual_seed(0)
    centers, sets = torch.randn(6, 64), []
    for shares, images in ((torch.rand(6), 600), (torch.ones(6), 300)):  # classes of the neighbors of uneven size
        labels = torch.multinomial(shares, images, replacement=True)
        sets.append(Features(centers[labels] + 4 * torch.randn(images, 64), labels, [], labels))
    train, val = sets
    result = knn_accuracy(train, val, classes=6)
    assert [row.k for row in result.rows] == [10, 20, 100, 200]
    for row in result.rows:
        top1, top5 = dino_knn_classifier(train, val, row.k, 6)
        assert row.top1 == pytest.approx(top1)
        if row.k > 10:  # of 10 neighbors fewer than five classes may have votes; DINO fills up with any others
            assert row.top5 == pytest.approx(top5)
    assert len({row.top1 for row in result.rows}) == 4  # each k is another rule
    assert result.dino == result.rows[1]
    assert result.top1 == max(row.top1 for row in result.rows)
    values = result.to_dict()
    assert values["dino"] == {"k": 20, "top1": result.rows[1].top1, "top5": result.rows[1].top5}
    other = knn_accuracy(train, val, classes=6, ks=[10, 100])
    assert other.dino is None
    assert other.to_dict()["dino"] is None


def test_a_near_neighbor_outvotes_two_far_ones() -> None:
    # Cosines 1, 0 and 0: weights e^14.3, 1 and 1. With a temperature of 10 they are 1.1, 1 and 1.
    train = labeled([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], [0, 1, 1])
    val = labeled([[3.0, 0.0]], [0])
    assert knn_accuracy(train, val, classes=2, ks=[3]).top1 == 1.0
    assert knn_accuracy(train, val, classes=2, ks=[3], temperature=10.0).top1 == 0.0


def test_only_k_neighbors_vote() -> None:
    # The query's own direction is class 1; four others at 45 degrees are class 0.
    train = labeled([[1.0, 0.0], *[[1.0, 1.0]] * 4], [1, 0, 0, 0, 0])
    result = knn_accuracy(train, labeled([[1.0, 0.0]], [1]), classes=2, ks=[1, 5], temperature=1.0)
    assert [(row.k, row.top1, row.top5) for row in result.rows] == [(1, 1.0, 1.0), (5, 0.0, 1.0)]
    assert (result.best_k, result.top1) == (1, 1.0)


def test_a_class_without_votes_is_not_in_the_top_5() -> None:
    result = knn_accuracy(labeled([[1.0], [1.0]], [0, 1]), labeled([[1.0]], [2]), classes=3, ks=[1, 2])
    assert [row.top5 for row in result.rows] == [0.0, 0.0]


def test_a_low_temperature_does_not_overflow() -> None:
    train = labeled([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [0, 1, 1])
    assert knn_accuracy(train, labeled([[1.0, 0.0]], [0]), classes=2, ks=[3], temperature=1e-3).top1 == 1.0


def test_a_k_above_the_training_set_is_lowered_and_noted() -> None:
    train = random_features(30, 4, 3, 0)
    result = knn_accuracy(train, train, classes=3, ks=[200, 10, 100])
    assert [row.k for row in result.rows] == [10, 30]
    assert result.note == "k = 100, 200 lowered to the 30 training images"
    assert knn_accuracy(train, train, classes=3, ks=[30]).note == ""


def test_the_result_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = random_features(50, 8, 7, 1), random_features(23, 8, 7, 2)
    whole = knn_accuracy(train, val, classes=7)
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", 50 * 4)  # four queries at a time
    assert knn_accuracy(train, val, classes=7) == whole


def test_the_best_is_the_smallest_of_equal_ks() -> None:
    rows = (KnnRow(10, 0.5, 0.6), KnnRow(20, 0.7, 0.8), KnnRow(100, 0.7, 0.9))
    result = KnnResult(rows, 200, 50, "")
    assert (result.best_k, result.top1, result.top5) == (20, 0.7, 0.8)
    assert json.loads(json.dumps(result.to_dict()))["rows"][2] == {"k": 100, "top1": 0.7, "top5": 0.9}


@pytest.mark.parametrize(
    ("train", "val", "options", "message"),
    [
        (random_features(0, 4, 3, 0), random_features(5, 4, 3, 0), {}, "^train: expected at least one image"),
        (random_features(5, 4, 3, 0), random_features(0, 4, 3, 0), {}, "^val: expected at least one image"),
        (labeled([[1.0]], [0]), labeled([[1.0]], [-1]), {}, r"^val: expected labels in 0 .. 2, got -1 .. -1"),
        (labeled([[1.0]], [3]), labeled([[1.0]], [0]), {}, r"^train: expected labels in 0 .. 2, got 3 .. 3"),
        (labeled([[1.0]], [0]), labeled([[1.0, 2.0]], [0]), {}, "features of one width, got 1 and 2"),
        (labeled([[1.0]], [0]), labeled([[1.0]], [0]), {"ks": [0]}, "^ks: "),
        (labeled([[1.0]], [0]), labeled([[1.0]], [0]), {"ks": []}, "^ks: "),
        (labeled([[1.0]], [0]), labeled([[1.0]], [0]), {"temperature": 0.0}, "^temperature: "),
    ],
)
def test_invalid_arguments_are_named(train: Features, val: Features, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        knn_accuracy(train, val, classes=3, **options)
