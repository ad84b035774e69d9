"""The probe that a fine-tuning begins with: its held-out images, its learning rate, its place in the network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpatch.data.augment import EvalTransform
from hardpatch.data.sources import Subset, open_source
from hardpatch.errors import UserError
from hardpatch.finetune.probe import features, fit_probe, hold_out, install
from hardpatch.measure.features import Features
from hardpatch.measure.linear import BASE_LRS, train_heads
from hardpatch.train.device import start_fabric
from tests.finetune.small import small_classifier


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_held_out_images(share: float) -> None:
    labels = np.random.default_rng(0).choice(7, 400, p=[0.4, 0.3, 0.2, 0.05, 0.03, 0.01, 0.01]).tolist()
    learned_from, held_out = hold_out(labels, share, seed=3)
    assert sorted(learned_from + held_out) == list(range(400))
    assert len(held_out) == pytest.approx(400 * share, abs=2)
    for label in range(7):
        count = labels.count(label)
        held = sum(labels[index] == label for index in held_out)
        assert held == pytest.approx(count * share, abs=1.01)
        assert held < count  # something of each class is left to learn from
    assert hold_out(labels, share, seed=3) == (learned_from, held_out)
    assert hold_out(labels, share, seed=4) != (learned_from, held_out)


def test_classes_of_few_images() -> None:
    labels = [*range(50), 50, 50]  # one class of two images among those of one
    assert len(hold_out(labels, 0.2, seed=0)[1]) == 1
    assert set(hold_out(labels, 0.2, seed=0)[1]) < {50, 51}
    with pytest.raises(UserError, match="--train: expected two images or more of some class, to hold one out, got 3"):
        hold_out([0, 1, 2], 0.2, seed=0)


def test_the_network_begins_as_the_probe() -> None:
    """The layer norm with the numbers of the batch norm, and a plain loop over the images."""
    source = Subset(open_source("demo:train"), range(60))
    model, fabric = small_classifier(10).eval(), start_fabric("cpu", "fp32", "--")
    known = features(model, source, fabric, size=(16, 24), batch_size=16, workers=0, progress=lambda done, total: None)
    assert known.indices.tolist() == list(range(60))
    heads, _ = train_heads(known, classes=10, generator=torch.Generator().manual_seed(0), base_lrs=[0.1, 1.0])
    heads.norm.eval()
    install(model, heads, 1)
    pixels = torch.stack([EvalTransform((16, 24))(source.image(k)) for k in range(60)])
    expected = F.linear(heads.norm(known.features), heads.weights[1], heads.biases[1])
    torch.testing.assert_close(model(model.normalize(pixels)), expected, rtol=1e-3, atol=1e-3)


def test_the_learning_rate_is_picked_on_images_that_were_not_seen() -> None:
    """Of 64 noisy features one tells the class: the lowest rates have not found it, which the held-out images show."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    vectors = torch.randn(200, 64, generator=generator)
    vectors[:, 0] += 3 * labels
    known = Features(vectors, labels, [], torch.arange(200))
    held_out = hold_out(labels.tolist(), 0.2, seed=0)[1]
    fabric = start_fabric("cpu", "fp32", "--")
    probe = fit_probe(known, held_out, 2, fabric, share=0.2, seed=0)
    out = torch.tensor([index in held_out for index in range(200)])
    accuracies = []
    for number in range(5):  # each split by itself
        unseen = torch.zeros(200, dtype=torch.bool)
        unseen[hold_out(labels.tolist(), 0.2, seed=number)[1]] = True
        parts = [Features(vectors[which], labels[which], [], known.indices[which]) for which in (~unseen, unseen)]
        heads, _ = train_heads(parts[0], classes=2, generator=torch.Generator().manual_seed(0))
        accuracies.append([row.top1 for row in heads.rows(BASE_LRS, parts[1])])
    means = np.mean(accuracies, axis=0)
    assert probe.held_out_top1 == pytest.approx(means.max())
    assert means[probe.best] == pytest.approx(means.max())
    assert probe.held_out_images == 5 * 40
    assert probe.held_out_top1 > 0.75
    assert len(probe.whole.weights) == 1
    assert len(probe.part.weights) == len(BASE_LRS)
    # The layers for the held-out images know nothing of them: other vectors there change no weight of theirs.
    other = known._replace(features=torch.where(out[:, None], torch.zeros_like(vectors), vectors))
    again = fit_probe(other, held_out, 2, fabric, share=0.2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(again.part.weights, probe.part.weights, strict=True))
    assert not torch.equal(again.whole.weights[0], probe.whole.weights[0])
