"""How long a training waits for a checkpoint: written at once, or in a thread.

    python benchmarks/checkpoint_saving.py FOLDER [--width W --depth D --repeats N]

Saves the whole state of an HPM run (student, teacher, optimizer) in FOLDER, in turns. The pause is the time that the
training waits in a save; "until it is on the disk" is the time until the checkpoint is visible.
"""

import argparse
import shutil
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning_fabric import Fabric

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.pretrain.step import Learner


def make_learner(width: int, depth: int) -> Learner:
    """Return a run whose optimizer has its state, after a step with gradients of zero."""
    settings = [f"--model.width={width}", f"--model.depth={depth}", f"--model.heads={width // 64}"]
    run = config.build({"steps": 1, "batch_size": 1}, settings)
    fabric = Fabric(accelerator="auto", devices=1)
    learner = Learner(run, initial_model(run), fabric, 1)
    for parameter in learner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.adamw.step()
    return learner


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    learner = make_learner(options.width, options.depth)
    writer = learner.state.writer
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for repeat in range(options.repeats + 1):  # the first one does not count
        for background in (False, True):
            started = time.monotonic()
            with writer.background() if background else nullcontext():
                learner.state.save(options.folder, 1 + repeat, {})
                pause = time.monotonic() - started
            assert writer.failure() is None
            seconds[background].append((pause, time.monotonic() - started))
    saved = options.folder / "checkpoints"
    size = sum(path.stat().st_size for path in saved.glob(f"step_{options.repeats + 1:08d}/*"))
    shutil.rmtree(saved)
    print(f"{size / 2**30:.2f} GiB on {learner.fabric.device}\n\n| saving | pause, s | until it is on the disk, s |")
    print("|---|---|---|")
    for background, rows in seconds.items():
        cells = (
            f"{statistics.median(part):.2f} ({min(part):.2f}-{max(part):.2f})" for part in zip(*rows[1:], strict=True)
        )
        print(f"| {'in a thread' if background else 'at once'} | {' | '.join(cells)} |")
    ratios = [one[0] / other[0] for one, other in zip(seconds[False][1:], seconds[True][1:], strict=True)]
    print(f"\npause at once / in a thread: {statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})")


if __name__ == "__main__":
    main()
