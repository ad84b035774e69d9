"""Every command of the documentation that can be typed runs as it is printed there, on small sets, with small models.

What a page assumes is there: sets, weights and runs under the names of the page (:mod:`.documented_sets`), other than
those that its own commands write. Options that make a command short are put behind its own. What ``torchrun`` and
``srun`` start runs as one process; several processes have tests of their own (``test_distributed``).
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardpatch.cli import main
from tests.documented import Command, commands
from tests.end_to_end.documented_sets import DEPTH, make_runs, make_sets
from tests.end_to_end.test_help_examples import SHORTER, TRAINED

MODEL = ("--model.width", "32", *DEPTH, "--model.decoder_width", "16", "--model.decoder_heads", "2")
STEPS = ("--batch_size", "8", "--train.device", "cpu", "--data.workers", "0", "--verdict.checks", "0")
QUIET = ("--train.pictures", "0", "--train.report", "no")  # other tests draw and write them
STANDS_FOR = {"RUN": "pretrained", "WEIGHTS": "weights"}
"""Words of commands that are no path of a run, and what is put in their place."""
ENDS_WITH_1 = ("--lr 1e6", "--optim.lr 1e30")
"""What the pages let fail, to show what is said then."""


def found() -> list[Command]:
    """Return the complete commands that stand in blocks, each once a page; studies, which are long, once."""
    shown = [command for command in commands() if command.shown and command.complete]
    once = {
        ("" if command.arguments[0] == "study" else command.page, shlex.join(command.arguments)): command
        for command in shown
    }
    return list(once.values())


def shorter(words: list[str]) -> list[str]:
    """Return options that make a command short."""
    verb = words[0]
    two = " ".join(words[:2])
    if "--resume" in words or two == "study plan":
        return ["--images_per_second", "100"] if verb == "study" else []
    if verb == "linear" and "paper" in words:
        return SHORTER["linear --protocol paper"].split()
    if verb == "study" and two not in SHORTER:
        return [*SHORTER["study"].split(), *QUIET, "--seeds", "1", "--jobs", "1"]
    if verb == "finetune" and {"--preset", "--freeze"} & set(words):
        freeze = ["--freeze", "2"] if "8" in words else []  # of 12 blocks; the run here has four
        return [*SHORTER["finetune"].split(), "--warmup_epochs", "0", "--image_size", "32", *freeze]
    if two == "bench data" and "--workers" in words:
        return [*SHORTER[two].split(), "--workers", "0", "4"]
    if verb == "finetune" and "--steps" in words:
        return [*TRAINED.split(), "--steps", "4", "--batch_size", "8"]
    if verb != "pretrain":
        return SHORTER.get(two, SHORTER.get(verb, "")).split()
    short = [*STEPS, *QUIET]
    if not {"--init", "--config"} & set(words):
        short += MODEL
    if "--hours" in words or not {"--recipe", "--config"} & set(words):
        short += ["--hours", "0.001"]
    elif "--steps" in words:
        short += ["--steps", "6"]  # enough for what a page lets fail
    elif "--epochs" not in words:
        short += ["--steps", "2"]
    return short


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make sets and runs, and go there."""
    root, before = tmp_path_factory.mktemp("pages"), Path.cwd()
    os.chdir(root)
    make_sets(root)
    make_runs(root / "made")
    yield root
    os.chdir(before)


@pytest.fixture
def place(made: Path) -> Iterator[Path]:
    """Remove what a page's commands wrote: other pages may write the same names."""
    there = set(made.iterdir())
    yield made
    for path in set(made.iterdir()) - there:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def written(words: list[str]) -> str:
    """Return the folder or file that a command writes, if it writes one; a page may show alternatives that write it."""
    unnamed = "runs/run" if words[0] == "pretrain" else ""
    return words[words.index("--out") + 1] if "--out" in words else unnamed


def put_runs(chosen: list[Command], root: Path) -> None:
    """Make the runs that commands of a page read and that no earlier one of them writes."""
    made = set[str]()
    for command in chosen:
        words = command.arguments
        out = written(words)
        for word in words[1:]:
            run = re.match(r"(RUN|WEIGHTS|hpm|runs/\w+)\b", word)
            if run and run[0] not in made and run[0] != out and not (root / run[0]).exists():
                kind = run[0].split("/")[-1]
                kind = kind if kind in ("classifier", "segmenter", "detector") else STANDS_FOR.get(kind, "pretrained")
                shutil.copytree(root / "made" / kind, root / run[0])
        made.add(out)


def link_shards(text: str) -> None:
    """Make the shards that a command names of the one that a command before it wrote."""
    names = [f"shard-{number:06d}" for number in range(100)] if "{000000..000099}" in text else []
    names += ["train-000000", "val-000000"] if "shards/train-*.tar" in text else []
    for path in (Path("shards", f"{name}.tar") for name in names):
        if not path.exists():
            path.symlink_to("shard-000000.tar")


@pytest.mark.parametrize("page", sorted({command.page for command in found()}))
def test_commands_of_a_page_run(
    page: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hardpatch.view.run.serve", lambda viewer, **options: None)  # it would go on for ever
    chosen = [command for command in found() if command.page == page]
    put_runs(chosen, place)
    for command in chosen:
        words = command.arguments
        if (out := written(words)) and "--resume" not in words and words[0] != "study":  # studies share their runs
            shutil.rmtree(out, ignore_errors=True)
            Path(out).unlink(missing_ok=True)
        link_shards(command.text)
        code = main([*words, *shorter(words)])
        said = capsys.readouterr()
        expected = 1 if any(part in command.text for part in ENDS_WITH_1) else 0
        assert code == expected, f"{command.text}\n{said.out}{said.err}"
