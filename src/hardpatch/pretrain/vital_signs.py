"""Is the miner alive? What a run says of itself, as JSON lines and for TensorBoard."""

import math

import torch
from torch import Tensor

from hardpatch.errors import TrainingError
from hardpatch.methods.curriculum import mined_count
from hardpatch.methods.hpm import Losses, Masking, MinedMask
from hardpatch.methods.losses import pair_accuracy, rank_correlation
from hardpatch.methods.masking import draw_mask, masked_count, pool_units, spread_units


class RunningMeans:
    """Means of the losses since the last line of metrics; they stay on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, device=device)
        self.count = 0

    @torch.no_grad()
    def add(self, losses: Losses) -> None:
        """Take in a step, or a piece of one."""
        zero = losses.loss.new_zeros(())
        others = (zero if part is None else part for part in (losses.predicting, losses.classes))
        self.sums += torch.stack([losses.loss, losses.reconstruction.mean(), *others])
        self.count += 1

    def read(self, first: int, last: int) -> dict[str, float]:
        """The means, and start anew. Waits for the device.

        Raises:
            TrainingError: if a loss between the steps ``first`` and ``last`` was not finite.
        """
        means = (self.sums / self.count).tolist()
        self.sums, self.count = torch.zeros_like(self.sums), 0
        if not all(map(math.isfinite, means)):
            raise diverged(first, last)
        row = dict(zip(("loss", "reconstruction_loss", "predicting_loss", "class_loss"), means, strict=True))
        if not row["class_loss"]:
            del row["class_loss"]  # only host ibot has one
        return row


def diverged(first: int, last: int) -> TrainingError:
    """What to say, and what to do, where training between two steps left the finite numbers."""
    return TrainingError(
        f"the loss became NaN or infinite between steps {first} and {last}; nothing of that was saved. "
        "Try a lower optim.base_lr, a lower optim.clip, or train.precision fp32 (bf16 rather than fp16), "
        "then go on from the last checkpoint with --resume or start anew"
    )


@torch.no_grad()
def vital_signs(
    problem: MinedMask,
    losses: Losses,
    noise: Tensor,
    alpha: float,
    mask_ratio: float,
    grid: tuple[int, int],
    masking: Masking,
) -> dict[str, Tensor]:
    """How well the predictor ranks, and whether what is mined is hard: scalars on the device.

    Args:
        problem: of one batch, with the teacher's difficulty where something was mined.
        losses: what the student made of it.
        noise: from which the mask was drawn.
        alpha, mask_ratio, grid, masking: as :func:`~hardpatch.methods.hpm.mine_mask` was told.

    Returns:
        ``pair_accuracy``: share of the pairs of masked patches that the student ranks rightly, 0.5 is chance.
        ``spearman``: rank correlation of predicted and true loss over the masked patches of an image, mean over images.
        ``mined_overlap``: share of the mined patches that would have been masked without mining as well; with random
        masks it is the mask ratio where mining tells something that the draw does not know.
        ``mined_loss_ratio``: reconstruction loss of mined patches over that of the other masked ones; above 1 where
        what the teacher calls hard is hard.
        ``token_entropy``, ``target_entropy``: of hosts beit and ibot, how evenly tokens are used, 1 is evenly and 0 a
        collapse onto one.
    """
    signs: dict[str, Tensor] = dict(losses.token_use or {})
    if losses.predicted is not None:
        predicted, true = losses.predicted.float(), losses.reconstruction.float()
        signs["pair_accuracy"] = pair_accuracy(predicted, true)
        signs["spearman"] = rank_correlation(predicted, true).mean()
    if problem.difficulty is not None:
        masked_at = problem.mask.masked
        rows, unit = len(masked_at), masking.unit
        units = grid[0] // unit, grid[1] // unit
        count = masked_count(units[0] * units[1], mask_ratio)
        attention = None if problem.sight is None else problem.sight.attention
        difficulty, attention = (
            None if values is None else pool_units(values[:rows], grid, unit)
            for values in (problem.difficulty, attention)
        )
        assert difficulty is not None
        mined_at = difficulty.topk(mined_count(count, alpha), dim=1, largest=masking.mining == "hard").indices
        is_mined = torch.zeros_like(difficulty, dtype=torch.bool).scatter(1, mined_at, True)
        drawn = draw_mask(masking.mask, noise[:rows], count, grid=units, attention=attention)
        signs["mined_overlap"] = drawn.gather(1, mined_at).float().mean()
        flags = spread_units(is_mined, grid, unit).gather(1, masked_at)
        of_mined = torch.where(flags, losses.reconstruction, 0.0).sum() / flags.sum()
        of_drawn = torch.where(flags, 0.0, losses.reconstruction).sum() / (~flags).sum()
        signs["mined_loss_ratio"] = of_mined / of_drawn
    return signs
