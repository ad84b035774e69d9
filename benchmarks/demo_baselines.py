"""Baselines for the predicted difficulty on the embedded set.

    python benchmarks/demo_baselines.py RUN

Prints the mean area under the ROC curve over demo:test, of the mean of the training masks (the same map for every
image) and of RUN's loss predictor before training. `hardpatch score RUN demo:test` prints that of the trained one.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

import hardpatch
from hardpatch.data.demo import demo_source


def mean_auc(maps: torch.Tensor, masks: list[np.ndarray]) -> float:
    """Mean area under the ROC curve of maps ``[n, rows, columns]`` against ``n`` masks, upsampled as by `score`."""
    upsampled = F.interpolate(maps[:, None], size=masks[0].shape, mode="bilinear", align_corners=False)[:, 0].numpy()
    return float(
        np.mean([roc_auc_score(mask.ravel(), values.ravel()) for mask, values in zip(masks, upsampled, strict=True)])
    )


@torch.no_grad()
def main(run: str) -> None:
    """Measure and print both baselines."""
    train, test = demo_source("train"), demo_source("test")
    model = hardpatch.load(run, "random")
    masks = [test.mask(i) for i in range(len(test))]
    mean_mask = torch.from_numpy(np.mean([train.mask(i) for i in range(len(train))], axis=0)).float()
    fixed = F.avg_pool2d(mean_mask[None, None], model.patch_size)[0].expand(len(test), -1, -1)
    print(f"mean of the training masks: {mean_auc(fixed, masks):.3f}")
    pixels = torch.stack([torch.from_numpy(test.image(i)).permute(2, 0, 1) for i in range(len(test))])
    difficulty = torch.cat([model.predict_loss(model.normalize(part)) for part in pixels.split(100)])
    print(f"untrained loss predictor: {mean_auc(difficulty.unflatten(1, model.grid), masks):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
