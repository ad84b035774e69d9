"""k-NN accuracy after the same short pre-training on the same photographs in 8 bits, 12 of 16 bits and floating point.

    python benchmarks/bit_depths.py --data TRAIN --val VAL --out DIR [--seeds 3] [--setting value ...]

TRAIN and VAL are folders of class folders. ``OUT/sets`` gets six copies of them, in gray and in color: 8-bit PNG; TIFF
of ``uint16`` with values of 0 to 4095; TIFF of ``float32`` with values of 0 to 1. All have the same values but for
rounding. Each is trained with ``data.range auto`` and all seeds, and measured by ``hardpatch knn``; runs that are
complete in OUT are not repeated. A copy passes if its mean differs from that of 8 bits by no more than two standard
errors of the difference.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

DEPTHS: dict[str, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.generic]]] = {
    "8 bits": lambda pixels: pixels,
    "12 of 16 bits": lambda pixels: np.round(pixels * (4095 / 255)).astype(np.uint16),
    "float32": lambda pixels: pixels.astype(np.float32) / 255,
}
MODES = {"gray": "L", "color": "RGB"}


def write_sets(source: Path, out: Path) -> None:
    """Write the copies of a folder of class folders as ``out/MODE-DEPTH``, which ends the work if it is there."""
    for mode, letters in MODES.items():
        for depth, convert in DEPTHS.items():
            folder = out / f"{mode}-{depth.replace(' ', '_')}"
            if folder.exists():
                continue
            part = folder.with_suffix(".part")
            print(f"writing {folder}", file=sys.stderr)
            for path in sorted(source.glob("*/*")):
                with Image.open(path) as file:
                    pixels = convert(np.asarray(file.convert(letters)))
                target = part / path.parent.name / path.stem
                target.parent.mkdir(parents=True, exist_ok=True)
                if pixels.dtype == np.uint8:
                    Image.fromarray(pixels).save(f"{target}.png")
                else:
                    photometric = "minisblack" if pixels.ndim == 2 else "rgb"
                    tifffile.imwrite(f"{target}.tif", pixels, photometric=photometric)
            part.rename(folder)


def hardpatch(*arguments: object) -> None:
    """Run a command line, with its output only if it fails."""
    command = [sys.executable, "-m", "hardpatch", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}")


def measure(train: Path, val: Path, out: Path, settings: list[str]) -> float:
    """Return top-1 accuracy of k-NN (k = 20, as in DINO) in percent after a pre-training in ``out``."""
    result = out / "knn.json"
    if not result.exists():
        hardpatch("pretrain", "--data", train, "--out", out, *settings)
        hardpatch("knn", out, "--train", train, "--val", val, "--json", result, "--no_cache")
    return 100 * float(json.loads(result.read_text())["dino"]["top1"])


def main() -> None:
    """Train and measure all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options, settings = parser.parse_known_args()
    for name, source in (("train", options.data), ("val", options.val)):
        write_sets(source, options.out / "sets" / name)
    print("| | k-NN, mean and standard deviation | difference from 8 bits, and its standard error |\n|---|---|---|")
    for mode in MODES:
        first: list[float] = []
        for depth in DEPTHS:
            folder = f"{mode}-{depth.replace(' ', '_')}"
            train, val = (options.out / "sets" / name / folder for name in ("train", "val"))
            values = [
                measure(train, val, options.out / "runs" / folder / f"seed_{seed}", [*settings, "--seed", str(seed)])
                for seed in range(options.seeds)
            ]
            first = first or values
            mean, difference = statistics.mean(values), statistics.mean(values) - statistics.mean(first)
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            error = ((statistics.variance(values) + statistics.variance(first)) / len(values)) ** 0.5 if spread else 0.0
            compared = "" if values is first else f"{difference:+.2f} ± {error:.2f}"
            print(f"| {mode}, {depth} | {mean:.2f} ± {spread:.2f} | {compared} |", flush=True)


if __name__ == "__main__":
    main()
