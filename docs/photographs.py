"""Draw where a model finds photographs hard, the first picture of README.md.

    python docs/photographs.py RUN [--out docs/photographs.png]

The photographs come with scikit-image, which says of each that it is in the public domain or CC0: astronaut (NASA),
chelsea (Stefan van der Walt), coffee (Rachel Michetti), retina (Mikael Haggstrom), rocket (SpaceX). No run has seen
them. Difficulty is predicted for masked patches; the hardest three quarters are hidden from the reconstruction.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import skimage.data
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

import hardpatch
from hardpatch.data.augment import EvalTransform
from hardpatch.figures import INK, enlarge, heat_map, masked_image, reconstruction
from hardpatch.measure.difficulty import hardest_patches

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "retina", "rocket")
ROWS = ("photograph", "predicted difficulty", "hardest 75 % masked", "reconstruction", "true loss")


def main() -> None:
    """Score the photographs and draw them beside each other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--out", type=Path, default=Path("docs/photographs.png"))
    options = parser.parse_args()
    model = hardpatch.load(options.run)
    with tempfile.TemporaryDirectory() as folder:
        for name in PHOTOGRAPHS:
            Image.fromarray(getattr(skimage.data, name)()).save(f"{folder}/{name}.png")
        scored = hardpatch.score(options.run, folder, f"{folder}/scores", predict="masked", pictures=0)
        table = pq.read_table(scored.table).to_pylist()
    print(f"rank correlation of predicted and true loss: {scored.spearman:.2f}, mean over {len(table)} photographs")
    figure = Figure(figsize=(10, 10), dpi=90, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    for column, (name, row) in enumerate(zip(PHOTOGRAPHS, table, strict=True)):
        for number, picture in enumerate(pictures(model, getattr(skimage.data, name)(), row)):
            axes = figure.add_subplot(len(ROWS), len(PHOTOGRAPHS), number * len(PHOTOGRAPHS) + column + 1)
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column == 0:
                axes.set_ylabel(ROWS[number], fontsize=11, color=INK)
    figure.savefig(options.out)


@torch.inference_mode()
def pictures(model: hardpatch.HPM, photograph: np.ndarray, row: dict[str, list[float]]) -> list[np.ndarray]:
    """Return the pictures of :data:`ROWS` for one photograph and its row of the table of scores."""
    pixels = EvalTransform(model.image_size)(photograph)
    image, grid = pixels.permute(1, 2, 0).numpy(), model.grid
    difficulty, loss = (np.array(row[name], dtype=np.float32) for name in ("difficulty", "true_loss"))
    mask = hardest_patches(torch.tensor(difficulty)[None], round(0.75 * difficulty.size))
    prediction = model.reconstruct(model.encode(model.normalize(pixels[None]), mask), mask)[0].numpy()
    mean, std = model.mean.numpy(), model.std.numpy()
    normalized = bool(getattr(model.host, "normalize_pixels", False))
    hidden = mask[0].numpy()
    restored = reconstruction(image, prediction, hidden, model.patch_size, mean, std, normalized=normalized)
    large = enlarge(image)
    return [
        *(large, heat_map(large, difficulty, grid), masked_image(large, hidden, grid)),
        *(enlarge(restored), heat_map(large, loss, grid)),
    ]


if __name__ == "__main__":
    main()
