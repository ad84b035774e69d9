"""Opening the folder of a run: a new one, one that is resumed, one of another verb, and one that is half written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hardpatch import __version__
from hardpatch.errors import UserError
from hardpatch.train import run_folder
from hardpatch.train.folder_run import FolderRun, open_run
from hardpatch.train.resume import MAY_CHANGE
from hardpatch.train.settings import TrainingSettings

PRESETS = {"small": TrainingSettings(epochs=2.0), "large": TrainingSettings(epochs=9.0, batch_size=64)}
REQUIRED = {"run": "a run of hardpatch pretrain", "train": "labeled images"}
FILES = ["README.md", "checkpoints", "config.yaml", "environment.json", "pictures"]
README = "Made by `{command}`; to resume: {folder}\n"


def open_example(
    out: Path | None,
    preset: str | None = None,
    *,
    verb: str = "finetune",
    resume: bool = False,
    run: str | Path | None = None,
    train: str | None = None,
    **settings: Any,
) -> FolderRun[TrainingSettings]:
    inputs = {"run": run, "train": train}
    return open_run(verb, out, inputs, PRESETS, preset, settings, resume=resume, required=REQUIRED)


def begin(folder: Path, **settings: Any) -> FolderRun[TrainingSettings]:
    run = open_example(folder, run="runs/a", train="images", **settings)
    run.write("finetune", ["finetune", "runs/a", "--out", "with space"], README)
    return run


def test_a_new_run_has_the_default_preset_and_writes_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    run = open_example(folder, run=Path("runs/a"), train="images", seed=3)
    assert not (tmp_path / "new").exists()  # nothing is written before the data were looked at
    assert run == FolderRun(folder, {"run": "runs/a", "train": "images"}, TrainingSettings(epochs=2.0, seed=3), False)
    run.write("finetune", ["finetune", "runs/a", "--out", "with space"], README)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    values = yaml.safe_load((folder / "config.yaml").read_text())
    assert (values["verb"], values["run"], values["train"], values["seed"]) == ("finetune", "runs/a", "images", 3)
    command = "hardpatch finetune runs/a --out 'with space'"
    assert (folder / "config.yaml").read_text().startswith(f"# hardpatch {__version__}: {command}\n")
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["command"], environment["hardpatch"]) == (command, __version__)
    assert {"python", "torch", "timm", "platform", "device", "threads"} <= environment.keys()
    assert (folder / "README.md").read_text() == f"Made by `{command}`; to resume: {folder}\n"


def test_without_a_command_line_the_readme_names_verb_and_folder(tmp_path: Path) -> None:
    run = open_example(tmp_path / "run", run="a", train="b")
    run.write("finetune", [], README)
    assert f"hardpatch finetune --out {tmp_path / 'run'}" in (tmp_path / "run" / "README.md").read_text()


def test_another_preset(tmp_path: Path) -> None:
    run = open_example(tmp_path, "large", run="a", train="b", batch_size=8)
    assert run.settings == TrainingSettings(epochs=9.0, batch_size=8)


def test_a_resumed_run_needs_its_folder_only(tmp_path: Path) -> None:
    begin(tmp_path / "run", seed=3, val_every=0.5)
    resumed = open_example(tmp_path / "run", resume=True)
    assert resumed.inputs == {"run": "runs/a", "train": "images"}
    assert resumed.settings == TrainingSettings(epochs=2.0, seed=3, val_every=0.5)
    assert resumed.resume


def test_a_resumed_run_may_repeat_what_it_began_with_and_change_how_it_computes(tmp_path: Path) -> None:
    begin(tmp_path / "run", seed=3)
    resumed = open_example(tmp_path / "run", resume=True, train="images", seed=3, workers=0, precision="fp32")
    assert resumed.settings == TrainingSettings(epochs=2.0, seed=3, workers=0, precision="fp32")


def test_a_preset_beside_resume_must_be_that_of_the_run(tmp_path: Path) -> None:
    begin(tmp_path / "run", preset="large")
    assert open_example(tmp_path / "run", "large", resume=True).settings.epochs == 9.0
    with pytest.raises(UserError, match=r"was made with other settings: epochs was 9\.0, now 2\.0; batch_size was 64"):
        open_example(tmp_path / "run", "small", resume=True)


def test_a_resumed_run_keeps_settings_that_decide_what_is_learned(tmp_path: Path) -> None:
    begin(tmp_path / "run", seed=3)
    with pytest.raises(UserError) as caught:
        open_example(tmp_path / "run", resume=True, train="others", seed=4, batch_size=8, workers=0)
    assert str(caught.value) == (
        f"--resume: {tmp_path / 'run'} was made with other settings: batch_size was 16, now 8; seed was 3, now 4; "
        f"train was 'images', now 'others'; take those, or another --out; {MAY_CHANGE}"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": None}, "--out: expected a folder for the run, got nothing"),
        ({"preset": "smal"}, "--preset: expected one of small, large, got 'smal'; did you mean 'small'?"),
        ({"run": None}, "RUN: expected a run of hardpatch pretrain, got nothing"),
        ({"train": None}, "--train: expected labeled images, got nothing"),
        ({"trian": "x"}, "--trian: unknown setting; did you mean 'train'?"),
    ],
)
def test_what_a_new_run_needs(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_example(**{"out": tmp_path / "run", "run": "a", "train": "b", **arguments})
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_a_new_run_overwrites_nothing(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("run", "already holds a run; add --resume to continue it, or use another --out"),
        ("photos", "already holds other files; use another --out"),
        ("photos/a.jpg", "--out: expected a folder, .*a.jpg is a file"),
    ):
        with pytest.raises(UserError, match=message):
            open_example(tmp_path / name, run="a", train="b")
    open_example(tmp_path / "empty", run="a", train="b")


def test_a_run_of_another_verb_is_not_resumed(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"^--out: expected a folder of hardpatch segment, .*run is one of another verb$"
    ):
        open_example(tmp_path / "run", verb="segment", resume=True)


def test_a_folder_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for folder in (tmp_path / "photos", tmp_path / "missing"):
        with pytest.raises(UserError, match=r"^--out: expected a run folder with config\.yaml to resume, found none"):
            open_example(folder, resume=True)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list\n", "a: [1,\n"])
def test_a_broken_configuration_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^--out: .*config\.yaml") as caught:
        open_example(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_an_interrupted_write_leaves_the_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    begin(folder, seed=3)
    before = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    resumed = open_example(folder, resume=True, workers=0)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resumed.write("finetune", [], README)
    assert {path.name: path.read_text() for path in folder.iterdir() if path.is_file()} == before


def test_a_half_written_folder_can_be_completed(tmp_path: Path) -> None:
    """config.yaml is written last: a folder without it is no run yet, one with it is resumed and completed."""
    folder = tmp_path / "run"
    begin(folder, seed=3)
    (folder / "README.md").unlink()
    (folder / "pictures").rmdir()
    (folder / ".config.partial.yaml").write_text("half a fi")
    resumed = open_example(folder, resume=True)
    resumed.write("finetune", [], README)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert open_example(folder, resume=True).settings == resumed.settings
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"expected a run folder with config\.yaml"):
        open_example(folder, resume=True)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--out: expected a folder that can be written, got .*: Not a directory$"):
        run_folder.write_files(tmp_path / "file" / "run", "", ["finetune"], README)
