"""Vital signs of a run: how well the predictor ranks, and whether what is mined is hard."""

import torch
from torch import Tensor

from hardpatch.methods.hpm import Losses
from hardpatch.methods.losses import pair_accuracy, rank_correlation
from hardpatch.methods.mining import MinedMask


class RunningMeans:
    """Means of the losses since the last line of metrics; they stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    @torch.no_grad()
    def add(self, losses: Losses) -> None:
        """Add the losses of a step, or of a micro-batch."""
        for name, value in {"loss": losses.loss, **losses.parts}.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._count += 1

    def read(self) -> dict[str, float]:
        """Return the means and start anew. Waits for the device."""
        means = (torch.stack(list(self._sums.values())) / self._count).tolist()
        row = dict(zip(self._sums, means, strict=True))
        self._sums, self._count = {}, 0
        return row


@torch.no_grad()
def vital_signs(mined: MinedMask, losses: Losses) -> dict[str, Tensor]:
    """Measure predictor and mining on one batch: scalars on the device.

    Args:
        mined: its masks, with the draw without mining where something was mined.
        losses: of the student on it.

    Returns:
        ``pair_accuracy``: share of the pairs of masked patches that the student ranks rightly, 0.5 is chance.
        ``spearman``: rank correlation of predicted and true loss over the masked patches of an image, mean over images.
        ``mined_overlap``: share of the mined patches that would have been masked without mining as well; with random
        masks it is the mask ratio where mining knows something that the draw does not.
        ``mined_loss_ratio``: reconstruction loss of mined patches over that of the other masked ones; above 1 where
        what the teacher calls hard is hard.
        ``token_entropy``, ``target_entropy``: of hosts with tokens, how evenly these are used; 1 is even, 0 a collapse
        onto one.
    """
    signs: dict[str, Tensor] = dict(losses.token_metrics)
    if losses.predicted is not None:
        predicted, true = losses.predicted.float(), losses.reconstruction.float()
        signs["pair_accuracy"] = pair_accuracy(predicted, true)
        signs["spearman"] = rank_correlation(predicted, true).mean()
    if mined.mined is not None:
        is_mined = mined.mined.gather(1, mined.mask.masked)
        of_mined = torch.where(is_mined, losses.reconstruction, 0.0).sum() / is_mined.sum()
        of_drawn = torch.where(is_mined, 0.0, losses.reconstruction).sum() / (~is_mined).sum()
        signs["mined_loss_ratio"] = of_mined / of_drawn
        if mined.drawn is not None:
            signs["mined_overlap"] = (mined.drawn & mined.mined).sum() / mined.mined.sum()
    return signs
