"""Size of a report of many long runs, and the time until a browser has drawn it.

    python -m benchmarks.report_page --runs 20 --steps 200000 --chromium /usr/bin/chromium

Makes run folders with curves of noise in a temporary folder, as a training with `--log_every` would leave them, writes
their page, and opens it in headless Chromium three times.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from hardpatch.page.write import write_report

METRICS = (
    *("loss", "reconstruction_loss", "predicting_loss", "lr", "alpha", "momentum", "pair_accuracy", "spearman"),
    *("mined_loss_ratio", "mined_overlap", "gradient_norm", "images_per_second", "memory_gib", "check_rankme"),
    *("check_map_correlation", "check_knn_top1", "knn_top1"),
)


def make_run(folder: Path, steps: int, log_every: int, seed: int) -> None:
    """Write the files of a run whose metrics are noise around a falling curve."""
    rng, positions = np.random.default_rng(seed), np.arange(log_every, steps + 1, log_every)
    folder.mkdir()
    values = np.exp(-positions / steps)[:, None] + 0.05 * rng.standard_normal((len(positions), len(METRICS)))
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step, row in zip(positions.tolist(), values.tolist(), strict=True):
            file.write(json.dumps({"step": step, "epoch": step / 1000, **dict(zip(METRICS, row, strict=True))}) + "\n")
    (folder / "config.yaml").write_text(f"seed: {seed}\nmethod:\n  host: mae\n", encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"command": f"hardpatch pretrain --seed {seed}"}))
    result = {"verb": "pretrain", "steps": steps, "seconds": 3600.0, "metrics": {"loss": values[-1, 0]}}
    (folder / "result.json").write_text(json.dumps(result))


def seconds_to_open(chromium: str, page: Path) -> float:
    """Time a running headless Chromium from the address until the page is loaded and drawn, least of three."""
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            tab = browser.new_page()
            started = time.monotonic()
            tab.goto(page.as_uri())
            tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            times.append(time.monotonic() - started)
            tab.close()
        browser.close()
    return min(times)


def main() -> None:
    """Make the runs, write the page, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--log_every", type=int, default=50)
    parser.add_argument("--chromium", help="the program, which playwright starts; without it the page is only written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / f"run_{number:02d}" for number in range(options.runs)]
        for number, folder in enumerate(folders):
            make_run(folder, options.steps, options.log_every, number)
        read = sum((folder / "metrics.jsonl").stat().st_size for folder in folders)
        started, page = time.process_time(), Path(temporary) / "report.html"
        report = write_report(folders, page)
        seconds = time.process_time() - started
        print(f"{options.runs} runs of {options.steps:,} steps, {read / 1e6:.0f} MB of metrics, {len(METRICS)} each")
        print(f"page {report.bytes / 1e6:.2f} MB, written in {seconds:.1f} s of CPU time")
        if options.chromium:
            print(f"opened and drawn by Chromium in {seconds_to_open(options.chromium, page):.2f} s")


if __name__ == "__main__":
    main()
