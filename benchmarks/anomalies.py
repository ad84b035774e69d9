"""Areas under the ROC curve of `hardpatch anomalies` on rendered textures with scratches and blobs, over three seeds.

    python benchmarks/anomalies.py OUT [--steps 500] [--seeds 3] [--mask_ratio 0.5]

Each seed renders its own images, trains its own run on the normal ones and scores the others. docs/rank.md has the
table.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import hardpatch
from hardpatch.cli import main as command
from hardpatch.rank.areas import KINDS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests render the same textures

from tests.rank.textures import write_set

SMALL = (
    *("--recipe", "demo", "--batch_size", "16", "--model.width", "48", "--model.depth", "2", "--model.heads", "3"),
    *("--model.decoder_width", "32", "--model.decoder_depth", "1", "--optim.lr", "3e-3"),
    *("--data.crop_scale", "[1.0, 1.0]", "--data.workers", "0", "--train.device", "cpu"),
)


def main(out: Path, steps: int, seeds: int, mask_ratio: float) -> None:
    """Train, score and print the mean and the deviation over the seeds."""
    areas = []
    for seed in range(seeds):
        folder = out / f"seed_{seed}"
        write_set(folder, normal=300, good=60, defective=60, seed=seed)
        run = folder / "run"
        lengths = ("--steps", str(steps), "--method.mask_ratio", str(mask_ratio), "--seed", str(seed))
        code = command(["pretrain", *SMALL, *lengths, "--data", str(folder / "normal"), "--out", str(run)])
        assert code == 0
        normal, masks = str(folder / "normal"), folder / "masks"
        result = hardpatch.anomalies(
            run, str(folder / "test"), folder / "anomalies", train=normal, masks=masks, workers=0, device="cpu"
        )
        assert result.areas is not None
        areas.append(result.areas)
    print("| score | per pixel | per image |\n|---|---|---|")
    for name, words in KINDS.items():
        cells = []
        for kind in ("pixel", "image"):
            values = [getattr(area, kind)[name] for area in areas]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if seeds > 1 else 0:.3f}")
        print(f"| {words} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mask_ratio", type=float, default=0.5)
    options = parser.parse_args()
    main(options.out, options.steps, options.seeds, options.mask_ratio)
