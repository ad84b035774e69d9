"""Label-free measures of features against slow, obvious versions."""

import math

import pytest
import torch

from hardpatch.measure.spread import nearest_neighbors, rankme, shared_neighbors


def test_rankme_counts_equal_directions() -> None:
    assert rankme(torch.eye(12)[:, :7]) == pytest.approx(7.0, rel=1e-4)
    assert rankme(torch.ones(50, 8)) == pytest.approx(1.0, abs=1e-3)
    assert rankme(torch.zeros(50, 8)) == 1.0


def test_rankme_is_the_entropy_of_the_singular_values() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 4, 2, 1, 0.5, 0.1])
    values = [math.sqrt(value) for value in torch.linalg.eigvalsh(features.double().T @ features.double()).tolist()]
    shares = [value / sum(values) for value in values]
    assert rankme(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-4)
    assert rankme(3.0 * features) == pytest.approx(rankme(features), rel=1e-6)


def test_neighbors_are_the_most_similar_others() -> None:
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    neighbors = nearest_neighbors(features, 4)
    for i in range(30):
        cosines = {j: float(torch.cosine_similarity(features[i], features[j], dim=0)) for j in range(30) if j != i}
        assert neighbors[i].tolist() == sorted(cosines, key=lambda j: -cosines[j])[:4]
    with pytest.raises(ValueError, match="expected 1 to 29"):
        nearest_neighbors(features, 30)


def test_shared_neighbors_do_not_depend_on_their_order() -> None:
    neighbors = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    assert shared_neighbors(neighbors, neighbors.flip(1)) == 1.0
    others = torch.tensor([[1, 5, 6], [7, 8, 9], [3, 1, 0], [2, 0, 5]])
    assert shared_neighbors(neighbors, others) == pytest.approx((1 + 0 + 3 + 2) / 12)
