"""Vital signs of a run: ranking accuracy of the loss predictor, and difficulty of the mined patches."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hardpatch.methods.hpm import Losses
from hardpatch.methods.losses import pair_accuracy, rank_correlation
from hardpatch.methods.mining import MinedMask
from hardpatch.processes import average


class RunningMeans:
    """Running means of the losses since the last line of metrics, on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """of each loss; never changed in place"""
        self._count = 0

    @torch.no_grad()
    def add(self, losses: Losses) -> None:
        """Add the losses of a step, or of a micro-batch."""
        sums = dict(self.sums)
        for name, value in {"loss": losses.loss, **losses.parts}.items():
            value = value.detach().float()
            sums[name] = sums[name] + value if name in sums else value.clone()
        self.sums = sums
        self._count += 1

    def read(self, left_out: int = 0) -> dict[str, float]:
        """Return the means over steps and processes, and reset them. Waits for the device.

        Args:
            left_out: micro-batches whose losses were taken out of :attr:`sums`; without any other the means are empty.
        """
        sums, count = self.sums, self._count - left_out
        self.sums, self._count = {}, 0
        if count == 0:
            return {}
        return dict(zip(sums, average(torch.stack(list(sums.values())) / count).tolist(), strict=True))


def unless(left_out: Tensor, after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums after a step, or those before it, 0 for a new one, if it was left out (bool, on the device)."""
    return {name: torch.where(left_out, before.get(name, 0.0), value) for name, value in after.items()}


@torch.no_grad()
def vital_signs(mined: MinedMask, losses: Losses) -> dict[str, Tensor]:
    """Measure the loss predictor and the mining on one batch, or on the part of it that this process has.

    Args:
        mined: masks of the batch and, if there was mining, those that would have been drawn without it.
        losses: of the student on the batch.

    Returns:
        Scalars on the device, by name.
        ``pair_accuracy``: fraction of pairs of masked patches that the student ranks correctly; 0.5 is chance.
        ``spearman``: rank correlation of predicted and true loss over the masked patches of an image, mean over images.
        ``mined_overlap``: fraction of the mined patches that would have been masked without mining, too; with random
        masks it is the mask ratio if mining is independent of the draw.
        ``mined_loss_ratio``: mean reconstruction loss of mined patches divided by that of the other masked patches;
        above 1 if the mined patches are hard.
        ``token_entropy``, ``target_entropy``: for hosts with tokens, entropy of their use; 1 is even use, 0 a collapse
        onto one token.
    """
    signs: dict[str, Tensor] = dict(losses.token_metrics)
    if losses.predicted is not None:
        predicted, true = losses.predicted.float(), losses.reconstruction.float()
        signs["pair_accuracy"] = pair_accuracy(predicted, true)
        signs["spearman"] = rank_correlation(predicted, true).mean()
    if mined.mined is not None:
        is_mined = mined.mined.gather(1, mined.mask.masked)
        of_mined, of_drawn = (
            average(torch.where(chosen, losses.reconstruction, 0.0).sum()) / average(chosen.sum().float())
            for chosen in (is_mined, ~is_mined)
        )
        signs["mined_loss_ratio"] = of_mined / of_drawn
        if mined.drawn is not None:
            signs["mined_overlap"] = (mined.drawn & mined.mined).sum() / mined.mined.sum()
    return signs


def mean_of_finite(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over the rows, one of each process, in which it is finite."""
    finite = {name: [row[name] for row in rows if math.isfinite(row[name])] for name in rows[0]}
    return {name: sum(numbers) / len(numbers) for name, numbers in finite.items() if numbers}
