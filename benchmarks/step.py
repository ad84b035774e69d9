"""One optimiser step of HPM beside one of MAE, alternating in one run.

    python benchmarks/step.py [--size tiny|small|base|large] [--image_size 32] [--patch_size 4] [--batch_size 64]

Prints median and interquartile range of both and of their ratio. Synthetic images, so that no loader is measured.
"""

import argparse
import statistics
import time

import torch

from hardpatch import config
from hardpatch.methods.hpm import mine
from hardpatch.models.teacher import Teacher
from hardpatch.randomness import patch_noise
from hardpatch.report.terminal import use_device
from hardpatch.train.build import initial_model
from hardpatch.train.optim import parameter_groups


class Contender:
    """A method with all that one of its optimiser steps needs."""

    def __init__(self, options: argparse.Namespace, device: torch.device, predicting_loss: str) -> None:
        shape = [f"--model.{name}={value}" for name, value in vars(options).items() if name in ("size", "patch_size")]
        shape += [f"--data.image_size={options.image_size}", f"--method.predicting_loss={predicting_loss}"]
        shape += [f"--model.decoder_{n}={getattr(options, f'decoder_{n}')}" for n in ("width", "depth", "heads")]
        self.student = initial_model(config.build({"steps": 1}, shape)).to(device)
        self.teacher = Teacher(self.student) if self.student.has_predictor else None
        groups = parameter_groups(self.student, 0.05)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
        self.pixels = torch.randint(
            256, (options.batch_size, 3, options.image_size, options.image_size), dtype=torch.uint8, device=device
        )
        self.samples = torch.arange(options.batch_size, device=device)
        self.device, self.done = device, 0

    def step(self) -> float:
        """Seconds of one step, with half of the masked patches mined."""
        begin = time.perf_counter()
        images = self.student.normalise(self.pixels)
        patches = self.student.grid[0] * self.student.grid[1]
        noise = patch_noise(0, self.done, self.samples, patches)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            problem = mine(
                self.teacher, images, noise, mask_ratio=0.75, alpha=0.5 if self.teacher else 0.0, grid=self.student.grid
            )
            losses = self.student(images, problem.mask)
        losses.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            self.teacher.update(self.student, 0.999)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.done += 1
        return time.perf_counter() - begin


def main() -> None:
    """Time both, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=("tiny", "small", "base", "large", "huge"))
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--patch_size", type=int, default=4)
    parser.add_argument("--decoder_width", type=int, default=192)
    parser.add_argument("--decoder_depth", type=int, default=4)
    parser.add_argument("--decoder_heads", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = use_device(options.device)
    contenders = {"HPM": Contender(options, device, "relative"), "MAE": Contender(options, device, "none")}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(options.repeats + 2):  # the first two warm up
        for name, contender in contenders.items():
            seconds = contender.step()
            if repeat >= 2:
                times[name].append(seconds)
    print(f"{device}, {torch.get_num_threads()} threads, {vars(options)}")
    print("| | ms a step, median (quartiles) | images/s |\n|---|---|---|")
    for name, seconds_of in times.items():
        low, middle, high = statistics.quantiles(seconds_of, n=4)
        print(
            f"| {name} | {1e3 * middle:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f}) | {options.batch_size / middle:.0f} |"
        )
    ratios = [hpm / mae for hpm, mae in zip(times["HPM"], times["MAE"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"| HPM / MAE | {middle:.2f} ({low:.2f} to {high:.2f}) | |")


if __name__ == "__main__":
    main()
