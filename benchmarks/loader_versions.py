"""Images per second of the training loader in two checkouts of this project, in turns.

    python benchmarks/loader_versions.py OLD/src NEW/src --data IMAGES [--pairs 10] [--turns 10]

Each checkout has a process of its own, which loads batches of random resized crops without workers. The two take turns
of ``--batches`` batches, a b b a, and only one works at a time; CPU seconds of the process count. A process may be
faster than its equal by some percent, by where its memory lies, so that ``--pairs`` pairs are started one after
another. The same checkout given twice shows how far the ratio lies from 1 by chance.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH_SIZE = 64


class Checkout:
    """Process that loads batches with the code of one checkout."""

    def __init__(self, source: Path, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, *map(str, options.checkouts), "--data", options.data, "--serve"]
        command += ["--image_size", str(options.image_size)]
        environment = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )

    def seconds(self, batches: int) -> float:
        """Return the CPU seconds of these many further batches."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(batches, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("the process of a checkout ended, see above")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def serve(options: argparse.Namespace) -> None:
    """Load as many batches as each line of the standard input asks for, and answer with the CPU seconds."""
    import torch

    from hardpatch.data.augment import TrainTransform
    from hardpatch.data.loader import train_batches
    from hardpatch.data.sources import open_source

    torch.set_num_threads(1)
    transform = TrainTransform((options.image_size, options.image_size))
    batches = train_batches(open_source(options.data), transform, batch_size=BATCH_SIZE, seed=0)
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            next(batches)
        print(time.process_time() - start, flush=True)


def main() -> None:
    """Print the speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs=2)
    parser.add_argument("--data", required=True)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    times: tuple[list[float], list[float]] = ([], [])
    ratios = []
    for _ in range(options.pairs):
        pair: tuple[list[float], list[float]] = ([], [])
        both = [Checkout(source, options) for source in options.checkouts]
        for each in both:
            each.seconds(2 * options.batches)  # warm-up
        for turn in range(options.turns):
            for k in (0, 1) if turn % 2 == 0 else (1, 0):
                pair[k].append(both[k].seconds(options.batches))
        for each in both:
            each.close()
        ratios.append(statistics.median(old / new for old, new in zip(*pair, strict=True)))
        times[0].extend(pair[0])
        times[1].extend(pair[1])
    print("| | images per CPU second, median (quartiles) |\n|---|---|")
    for source, seconds in zip(options.checkouts, times, strict=True):
        print(f"| {source} | {quartiles([options.batches * BATCH_SIZE / each for each in seconds], '.0f')} |")
    print(f"\nthe second is {quartiles(ratios, '.3f')} times as fast as the first, over {options.pairs} pairs")


def quartiles(values: list[float], spec: str) -> str:
    """Return median and quartiles as text."""
    lower, median, upper = statistics.quantiles(values, n=4)
    return f"{median:{spec}} ({lower:{spec}} to {upper:{spec}})"


if __name__ == "__main__":
    main()
