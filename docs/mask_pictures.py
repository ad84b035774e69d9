"""Draw every mask on one photograph, the picture of docs/methods.md.

    python docs/mask_pictures.py RUN [--out docs/masks.png]

RUN is a finished run with a loss predictor; the attention and the predicted difficulty are those of its teacher. The
photograph is china.jpg, which comes with scikit-learn.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.datasets import load_sample_image

import hardpatch
from hardpatch.choices import MaskName
from hardpatch.data.augment import EvalTransform
from hardpatch.figures import INK, heat_map, masked_image
from hardpatch.methods.masking import chosen_count, draw_mask, masked_count, noise_count, secondary_mask
from hardpatch.methods.mining import hard_patches, spread_units
from hardpatch.patches import to_indices

GRID = (14, 14)
PATCHES = 196
MINED = 0.5


def main() -> None:
    """Draw the masks and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--out", type=Path, default=Path("docs/masks.png"))
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    teacher = hardpatch.load(options.run, "teacher")
    size = (GRID[0] * teacher.patch_size, GRID[1] * teacher.patch_size)
    photograph = load_sample_image("china.jpg").copy()
    pixels = EvalTransform(size)(photograph)
    with torch.no_grad():
        output = teacher.forward_whole(teacher.normalize(pixels.unsqueeze(0)), attention=True)
    difficulty, attention = output.difficulty, output.attention
    assert difficulty is not None
    assert attention is not None
    shown = EvalTransform((448, 448))(photograph).permute(1, 2, 0).numpy()

    def draw(mask: MaskName, ratio: float, mined: float = 0.0) -> torch.Tensor:
        count = chosen_count(mask, PATCHES, ratio)
        noise = torch.rand(1, noise_count(mask, PATCHES))
        return hard_patches(difficulty, noise, count, int(count * mined), strategy=mask, grid=GRID, attention=attention)

    grid = draw("grid", 0.75)
    hidden = secondary_mask(torch.rand(1, PATCHES), grid, 0.25)
    units = spread_units(draw_mask("random", torch.rand(1, 49), masked_count(49, 0.6), grid=(7, 7)), GRID, 2)
    easy = hard_patches(difficulty, torch.rand(1, PATCHES), 147, 73, "easy")
    masks = {
        "random, 75 %": draw("random", 0.75),
        "block, 38 % (BEiT)": draw("block", 0.38),
        "inverse_block, 75 %": draw("inverse_block", 0.75),
        "grid, 75 % (UM-MAE)": grid,
        "grid, and a quarter of the rest hidden": grid | hidden,
        "mask_unit 32 px, 60 % (SimMIM)": units,
        "attention_high, 38 % (AttMask)": draw("attention_high", 0.38),
        "attention_hint, 38 %": draw("attention_hint", 0.38),
        "attention_low, 38 %": draw("attention_low", 0.38),
        "mined: hard, half of 75 %": draw("random", 0.75, MINED),
        "mined: hard, the rest block, 38 %": draw("block", 0.38, MINED),
        "mined: easy, half of 75 %": easy,
    }
    figure = Figure(figsize=(13, 13.4), dpi=80, layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.06))
    pictures = {"photograph": shown, "predicted difficulty": heat_map(shown, difficulty[0].numpy(), GRID)}
    pictures["attention of the class token"] = heat_map(shown, attention[0].numpy(), GRID)
    pictures |= {title: masked_image(shown, mask[0].numpy(), GRID) for title, mask in masks.items()}
    for position, (title, picture) in enumerate(pictures.items(), 1):
        axes = figure.add_subplot(4, 4, position)
        axes.imshow(np.asarray(picture))
        axes.set_axis_off()
        axes.set_title(title, fontsize=10, color=INK)
    figure.savefig(options.out)
    for title, mask in masks.items():
        print(f"{title}: {int(to_indices(mask).masked.shape[1])} of {PATCHES} patches masked")


if __name__ == "__main__":
    main()
