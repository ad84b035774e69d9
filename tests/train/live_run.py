"""Program that shows the live view of a run that computes nothing: ``python live_run.py FOLDER [fast|slow|kill]``."""

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from hardpatch.printable import lasting_output, say
from hardpatch.train.display import open_display
from hardpatch.train.log import log_to
from hardpatch.train.progress import Unbreakable
from hardpatch.transcript import transcript

NAME = "cl\x1b[31mass [red]x[/red] \"quoted\" 'n' größe :smile: \x07end"

CHECK: dict[str, Any] = {"check_loss": 1.25, "check_mean_color": 1.5, "check_knn_top1": 0.125, "check_queries": 512.0}
STEP: dict[str, Any] = {"reconstruction_loss": 0.5, "pair_accuracy": 0.625, "spearman": 0.25, "alpha": 0.5}


def main(folder: Path, how: str) -> None:
    """Show 40 steps."""
    log = logging.getLogger("hardpatch")
    progress = Unbreakable(open_display("auto"))
    log.warning("said before the folder is there")
    log_to(folder / "log.txt", ["pretrain", "--out", str(folder)])
    log.info("--data: %s", NAME)
    progress.start(0, 40, 16, folder)
    progress.metrics({"step": 0, "epoch": 0.0, **CHECK})
    for step in range(1, 41):
        time.sleep(0.3 if how == "slow" else 0.02)
        progress.advance()
        if step % 5 == 0:
            row = {"step": step, "epoch": step / 10, "loss": 2.0 - step / 100, **STEP, "mined_loss_ratio": 1.5}
            progress.metrics(row | {"images_per_second": 320.0})
        if step == 10:
            log.warning("of a file: %s", NAME)
            warnings.warn("a library's warning", UserWarning, stacklevel=1)
            logging.getLogger("library").error("a library's error")
            print("printed to stderr", file=sys.stderr)
        if step == 20:
            log.info(
                "so far: barely", extra={"so_far": "barely - the loss falls, and nothing else has happened so far"}
            )
            progress.metrics({"step": 20, "epoch": 2.0, **CHECK, "check_loss": 1.0, "check_knn_top1": 0.375})
        if step == 30 and how == "kill":
            progress.stopping()
            time.sleep(600)
    log.warning("the last warning")
    progress.stop()
    say(f"{folder}: 40 steps done, {NAME}")


if __name__ == "__main__":
    with lasting_output(), transcript():
        main(Path(sys.argv[1]), sys.argv[2])
