"""What a pre-training costs at scale: GPU-hours, CPU cores, storage and bandwidth, by arithmetic.

    python benchmarks/scale.py [--utilization U --rate TFLOPS --decode N --file_kb K]

Operations are counted by `hardpatch.bench.flops`, parameters by building the models. The rest is what the options say.
"""

import argparse
from typing import Any

import torch

from hardpatch.bench.flops import step_flops
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig

MODELS = {
    "ViT-B/16": {"width": 768, "depth": 12, "heads": 12, "patch_size": 16},
    "ViT-L/16": {"width": 1024, "depth": 24, "heads": 16, "patch_size": 16},
    "ViT-H/14": {"width": 1280, "depth": 32, "heads": 16, "patch_size": 14},
}
FAST = {"prediction_ratio": 0.667, "shared_blocks": -1, "remember": True}
"""As in the recipe hpm_fast"""
SETS = {
    "ImageNet-1K, 800 epochs": (1_281_167, 800),
    "ImageNet-22K, 90 epochs": (14_197_122, 90),
    "a billion images, 1 epoch": (1_000_000_000, 1),
}
BYTES_ON_DEVICE, BYTES_ON_DISK = 20, 16
"""For each parameter in float32: weights, teacher, two moments, and on the device the gradient"""


def run_of(model: dict[str, int], fast: dict[str, Any] | None = None) -> RunConfig:
    """Return the settings of HPM at a size, as in the paper otherwise."""
    return config.build({"steps": 1, "batch_size": 4096, "model": model, "fast": fast or {}})


def print_models(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Print what a GPU needs for each model. Returns images per second of a GPU, by model and method."""
    columns = ["M parameters", "GFLOP an image: HPM, hpm_fast", "images/s", "cores that decode", "MB/s to read"]
    columns += ["state on the device, GB", "checkpoint, GB", "gradients exchanged a step, GB"]
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    speeds: dict[str, dict[str, float]] = {}
    for name, model in MODELS.items():
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in initial_model(run_of(model)).parameters())
        work = {}
        for method, fast in (("HPM", None), ("hpm_fast", FAST)):
            parts = step_flops(run_of(model, fast))
            assert parts is not None
            work[method] = sum(parts.values()) / 1e9
        speeds[name] = {key: options.utilization * options.rate * 1e3 / value for key, value in work.items()}
        both = list(zip(work.values(), speeds[name].values(), strict=True))
        cells = [
            f"{parameters / 1e6:.0f}",
            ", ".join(f"{value:.0f}" for value, _ in both),
            ", ".join(f"{speed:,.0f}" for _, speed in both),
            ", ".join(f"{speed / options.decode:.1f}" for _, speed in both),
            ", ".join(f"{speed * options.file_kb / 1e3:,.0f}" for _, speed in both),
            f"{parameters * BYTES_ON_DEVICE / 1e9:.1f}",
            f"{parameters * BYTES_ON_DISK / 1e9:.1f}",
            f"{2 * 4 * parameters / 1e9:.1f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    return speeds


def print_sets(speeds: dict[str, dict[str, float]], file_kb: float) -> None:
    """Print GPU-hours and storage for each set."""
    print(f"\n| | storage, TB | {' | '.join(f'{name}: HPM, hpm_fast' for name in speeds)} |")
    print(f"|---|---|{'---|' * len(speeds)}")
    for name, (images, epochs) in SETS.items():
        cells = [f"{images * file_kb / 1e9:.2f}"]
        hours = ([images * epochs / value / 3600 for value in speed.values()] for speed in speeds.values())
        cells += [", ".join(f"{value:,.0f}" for value in pair) for pair in hours]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utilization", type=float, default=0.4, help="share of the rate that training reaches")
    parser.add_argument("--rate", type=float, default=989.0, help="TFLOP/s of a GPU, dense bf16")
    parser.add_argument("--decode", type=float, default=950.0, help="images/s that a CPU core decodes and crops")
    parser.add_argument("--file_kb", type=float, default=108.0, help="size of a file")
    options = parser.parse_args()
    print_sets(print_models(options), options.file_kb)


if __name__ == "__main__":
    main()
