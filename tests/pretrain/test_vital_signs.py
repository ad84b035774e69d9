import pytest
import torch

from hardpatch.methods.hpm import Losses
from hardpatch.methods.mining import Masking
from hardpatch.patches import to_indices
from hardpatch.pretrain.vital_signs import RunningMeans, vital_signs


def losses(value: float, predicting: bool = True) -> Losses:
    parts = {"reconstruction_loss": torch.tensor(value)}
    parts |= {"predicting_loss": torch.tensor(value)} if predicting else {}
    return Losses(torch.tensor(2 * value), torch.full((2, 3), value), torch.rand(2, 3), parts, {})


def test_means_start_again_after_each_read() -> None:
    means = RunningMeans()
    for value in (1.0, 2.0, 6.0):
        means.add(losses(value))
    assert means.read() == {"loss": 6.0, "reconstruction_loss": 3.0, "predicting_loss": 3.0}
    means.add(losses(5.0, predicting=False))
    assert means.read() == {"loss": 10.0, "reconstruction_loss": 5.0}


def test_vital_signs_by_hand() -> None:
    # Two images of six patches, four masked, of which two are mined: patches 0 and 1 in both.
    difficulty = torch.tensor([[9.0, 8, 1, 2, 3, 4]]).repeat(2, 1)
    noise = torch.tensor([[0.9, 0.1, 0.8, 0.7, 0.6, 0.2], [0.1, 0.2, 0.9, 0.8, 0.7, 0.6]])
    mask = torch.tensor([[True, True, True, True, False, False]] * 2)
    true = torch.tensor([[4.0, 2.0, 1.0, 1.0], [6.0, 4.0, 1.0, 1.0]])
    predicted = torch.tensor([[4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 2.0, 1.0]])
    result = Losses(torch.tensor(0.0), true, predicted, {}, {})
    # With alpha 1/2 two patches are mined, and the noise decides the other two.
    masking = Masking((2, 3))
    mined = masking.mine_mask(noise, mask_ratio=0.6, alpha=0.5, difficulty=difficulty, compare=True)
    assert torch.equal(mined.mask.masked, torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]))
    assert torch.equal(mined.mask.masked, to_indices(mask).masked)
    signs = vital_signs(mined, result)
    # Each image has five pairs without ties; one pair of the second image is ranked wrongly.
    assert signs["pair_accuracy"].item() == pytest.approx(9 / 10)
    # Without mining the images would mask 0, 2, 3, 4 and 2, 3, 4, 5: one of the four mined patches is among these.
    assert signs["mined_overlap"].item() == pytest.approx(1 / 4)
    assert signs["mined_loss_ratio"].item() == pytest.approx(4.0 / 1.0)
    random = masking.mine_mask(noise, mask_ratio=0.6, alpha=0.0)
    assert "mined_overlap" not in vital_signs(random, result)
    tokens = result._replace(token_metrics={"token_entropy": torch.tensor(0.5)})
    assert vital_signs(random, tokens)["token_entropy"] == 0.5
