"""The commands of the first pages run as they are printed there, on small sets and with small models.

All other pages' commands are parsed (``tests/test_documented_commands.py``), and every verb runs in the examples of its
help (``test_help_examples.py``), whose folders and settings these commands share.
"""

import shlex
from pathlib import Path

import pytest

from hardpatch.cli import main
from tests.documented import Command, commands
from tests.end_to_end.test_help_examples import SHORTER, place

__all__ = ["place"]

PAGES = ("README.md", "quickstart.md", "backbone.md", "check.md", "plan.md", "predict.md")
LACKING = ("objects.json", "my_maps", "runs/demo", "runs/segmenter", "runs/detector", "--recipe tiny_imagenet_small")
"""Parts of commands of these pages whose data are not there, or that take minutes: the embedded set has the main job of
``make demo``, segmenters and detectors have the examples of ``predict``."""


def chosen() -> list[Command]:
    """Return each command of a block of these pages, once."""
    found = [command for command in commands() if command.page in PAGES and command.shown]
    found = [command for command in found if not any(part in command.text for part in LACKING)]
    return list({shlex.join(command.arguments): command for command in found}.values())


def test_commands_of_the_first_pages_run(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hardpatch.pretrain.run.write_pictures", lambda job: ())  # other tests draw them
    classifier = ["finetune", "runs/mine", "--train", "labeled/train", "--val", "labeled/val"]
    ran = set[str]()
    for command in chosen():
        verb, *arguments = command.arguments
        if verb == "predict":  # what another page trains
            assert main([*classifier, "--out", "runs/classifier", *SHORTER["finetune"].split()]) == 0
        if verb == "pretrain" and "--out" not in arguments:
            arguments += ["--out", "runs/of_the_plan"]
        shorter = SHORTER.get(verb, "").split()
        code = main([verb, *arguments, *shorter])
        said = capsys.readouterr()
        assert code == 0, f"{command.page}: {command.text}\n{said.out}{said.err}"
        ran.add(verb)
    assert ran >= {"check", "stats", "formats", "plan", "pretrain", "knn", "linear", "score", "export", "predict"}
