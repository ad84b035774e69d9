"""Run verbs on real images and write what they print as transcripts.md.

    python docs/transcripts.py DATA FOLDER

DATA has the folders caltech100_128, camvid100 and coco_mini. Everything else is written to FOLDER, which is new. Of
long outputs the middle is left out, and long lines are wrapped; nothing else is changed.
"""

import os
import platform
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).with_name("transcripts.md")
SETS = ("caltech100_128", "camvid100", "coco_mini")
TRAIN, TEST = "caltech100_128/train", "caltech100_128/test"
LABELED = f"--train {TRAIN} --val {TEST}"
DIVERGES = f"hardpatch pretrain --data {TRAIN} --hours 0.1 --optim.lr 1e30"
"""How the one command begins that ends with another exit code than 0."""
PARTS: dict[str, tuple[str, ...]] = {
    "From a folder to a timm model": (
        f"hardpatch check {TRAIN} --labels",
        f"hardpatch pretrain --data {TRAIN} --hours 0.1 --out runs/mine",
        f"hardpatch knn runs/mine {LABELED} --random_baseline",
        f"hardpatch linear runs/mine {LABELED}",
        f"hardpatch score runs/mine {TEST} --out pictures --pictures 8",
        "hardpatch report runs/mine --out mine.html",
        "hardpatch export runs/mine --to timm --out vit",
        "python -c \"import timm, torch; vit = timm.create_model('local-dir:vit', pretrained=True).eval()\n"
        'print(vit(torch.zeros(1, 3, 64, 64)).shape)"',
    ),
    "Before a training": (
        f"hardpatch plan {TRAIN} --hours 2",
        f"hardpatch stats {TRAIN}",
        f"hardpatch shrink {TRAIN} --side 64 --out small",
        f"hardpatch shard {TRAIN} --out shards",
        f"hardpatch bench data --data {TRAIN} --seconds 2",
        "hardpatch bench --recipe demo --contenders hpm,mae",
        "hardpatch recipes",
        "hardpatch formats",
        f"hardpatch tokenizer --data {TRAIN} --steps 60 --out runs/tokens",
    ),
    "After it": (
        "hardpatch info runs/mine",
        f"hardpatch embed runs/mine {TEST} --out vectors.parquet",
        f"hardpatch rank runs/mine {TEST} --out ranking",
        "hardpatch anomalies runs/mine caltech100_128/test/Motorbikes caltech100_128/test/watch \\\n"
        "    --train caltech100_128/train/Motorbikes --out strange",
        f"hardpatch study fig2 runs/mine {TEST} --count 4 --out fig2",
        "timeout --signal INT --preserve-status 30 hardpatch view runs/mine  # Ctrl-C after 30 seconds",
    ),
    "When it goes wrong": (
        f"{DIVERGES} --train.bad_steps 2 --verdict.checks 0 \\\n    --out runs/broken",
        "hardpatch replay runs/broken/dumps/step_00000003",
    ),
    "With labels": (
        f"hardpatch finetune runs/mine {LABELED} --steps 100 --out runs/classifier",
        f"hardpatch predict runs/classifier {TEST} --out classes.csv --pictures 3",
        "hardpatch segment runs/mine --train camvid100 --val camvid100 --steps 40 --warmup_steps 4 \\\n"
        "    --out runs/segmenter",
        "hardpatch detect runs/mine --train coco_mini/train2017 \\\n"
        "    --annotations coco_mini/annotations/instances_train2017.json --val coco_mini/val2017 \\\n"
        "    --val_annotations coco_mini/annotations/instances_val2017.json --image_size 160 --steps 20 \\\n"
        "    --out runs/detector",
        f"printf -- '- {{name: Caltech, verb: %s, train: {TRAIN}, val: {TEST}}}\\n' knn linear \\\n    > suite.yaml\n"
        "hardpatch evaluate runs/mine --suite suite.yaml --out evaluation",
        "hardpatch export runs/classifier --to onnx --out classifier.onnx",
    ),
}
FIRST, LAST, WIDTH = 20, 12, 116
"""Lines that are shown of a long output, and characters of a line."""
HEAD = """# What the verbs print

Made by `python docs/transcripts.py DATA FOLDER` on {date}:
{machine}.
The images are 2,595 and 789 of Caltech-101 (100 classes, at most 128 px), 100 of CamVid and a few of COCO. The
trainings are far too short to be good. Of long outputs the middle is left out, and long lines are wrapped; nothing
else is changed. The time in brackets includes seconds of imports. One thread (`OMP_NUM_THREADS=1`), beside other work
at lower priority.
"""


def machine() -> str:
    """Return the machine in a few words."""
    return f"{os.cpu_count()} cores, no GPU, Python {platform.python_version()}, PyTorch {torch.__version__}"


def shortened(text: str) -> list[str]:
    """Return the lines of an output, without the middle of a long one."""
    lines = [part for line in text.splitlines() for part in _wrapped(line)]
    left_out = len(lines) - FIRST - LAST
    return lines if left_out < 5 else [*lines[:FIRST], f"[{left_out} lines left out]", *lines[-LAST:]]


def _wrapped(line: str) -> list[str]:
    options = {"subsequent_indent": "    ", "drop_whitespace": False, "break_on_hyphens": False}
    return [part.rstrip() for part in textwrap.wrap(line.rstrip(), WIDTH, **options)] or [""]


def transcript(command: str, place: Path) -> list[str]:
    """Run a command in a shell, and return it with its output as lines of a page."""
    print(command, flush=True)
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = time.monotonic()
    done = subprocess.run(["bash", "-ec", command], cwd=place, env=environment, **options)
    seconds = time.monotonic() - started
    if bool(done.returncode) != command.startswith(DIVERGES):
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}")
    code = f", exit code {done.returncode}" if done.returncode else ""
    return ["```console", *f"$ {command}".splitlines(), *shortened(done.stdout), f"[{seconds:.0f} s{code}]", "```", ""]


def main() -> None:
    """Run all commands and write the page."""
    data, folder = (Path(argument).resolve() for argument in sys.argv[1:3])
    page = HEAD.format(date=datetime.now(UTC).date(), machine=machine()).splitlines()
    folder.mkdir()
    for name in SETS:
        (folder / name).symlink_to(data / name)
    for title, listed in PARTS.items():
        page += ["", f"## {title}", ""]
        for command in listed:
            page += transcript(command, folder)
            write(page)  # so that a command that fails loses no other


def write(page: list[str]) -> None:
    """Write the page as far as it goes."""
    PAGE.write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
