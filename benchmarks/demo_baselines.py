"""Baselines for predicted difficulty on the embedded set: two maps that ignore the image.

    python benchmarks/demo_baselines.py RUN

Prints the area under the ROC curve, mean over demo:test, of the mean of the training masks (the same map for every
image) and of the loss predictor as it was before RUN trained it. `hardpatch score RUN demo:test` gives the trained
one's.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

import hardpatch
from hardpatch.data.demo import demo_source


def area(maps: torch.Tensor, masks: list[np.ndarray]) -> float:
    """Mean area of patch maps ``[n, rows, columns]``, enlarged as `hardpatch score` does, against ``n`` masks."""
    enlarged = F.interpolate(maps[:, None], size=masks[0].shape, mode="bilinear", align_corners=False)[:, 0].numpy()
    return float(np.mean([roc_auc_score(mask.ravel(), m.ravel()) for mask, m in zip(masks, enlarged, strict=True)]))


@torch.no_grad()
def main(run: str) -> None:
    """Measure both and print them."""
    train, test = demo_source("train"), demo_source("test")
    model = hardpatch.load(run, "untrained")
    masks = [test.mask(i) for i in range(len(test))]
    usual = torch.from_numpy(np.mean([train.mask(i) for i in range(len(train))], axis=0)).float()
    fixed = F.avg_pool2d(usual[None, None], model.patch_size)[0].expand(len(test), -1, -1)
    print(f"fixed map of where digits lie: {area(fixed, masks):.3f}")
    pixels = torch.stack([torch.from_numpy(test.image(i, 3)).permute(2, 0, 1) for i in range(len(test))])
    difficulty = torch.cat([model.predict_loss(model.normalize(part)) for part in pixels.split(100)])
    print(f"untrained loss predictor: {area(difficulty.unflatten(1, model.grid), masks):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
