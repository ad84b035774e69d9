"""The examples at the end of every help text run as they are printed, on small sets and for a few steps."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from hardpatch.cli import VERBS, main
from hardpatch.cli.completion import NESTED
from hardpatch.cli.examples import EXAMPLES
from tests.end_to_end.conftest import SMALL, write_images

TRAINED = "--device cpu --workers 0"
SHORTER = {
    "pretrain": "--hours 0.001 --batch_size 8 --model.width 32 --model.depth 4 --model.heads 2 "
    "--model.decoder_width 16 --model.patch_size 4 --data.image_size 32 --train.device cpu "
    "--data.workers 0 --verdict.checks 0",
    "plan": "--hours 0.001 --model.width 32 --model.depth 2 --model.heads 2 --train.device cpu",
    "tokenizer": f"{TRAINED} --steps 2 --batch_size 4 --image_size 32 --patch_size 4 --vocabulary 32 --width 16",
    "knn": TRAINED,
    "linear": f"{TRAINED} --epochs 2",
    "linear --protocol paper": f"{TRAINED} --epochs 1 --warmup_epochs 0 --batch_size 8",
    "embed": TRAINED,
    "finetune": f"{TRAINED} --epochs 1 --batch_size 8",
    "segment": f"{TRAINED} --steps 2 --batch_size 2 --crop 16 24 --short_side 24 --channels 8 --warmup_steps 1 "
    "--stride 8",
    "detect": f"{TRAINED} --steps 2 --image_size 32 --batch_size 2 --window 3 --channels 8 --head_width 16 --rois 8 "
    "--global_blocks 2",
    "predict": TRAINED,
    "rank": TRAINED,
    "anomalies": TRAINED,
    "score": TRAINED,
    "check": "--workers 0",
    "stats": "--workers 0",
    "shrink": "--workers 0",
    "shard": "--workers 0",
    "bench": "--image_size 16 --decoder_width 16 --decoder_depth 2 --decoder_heads 2 --model.width 32 --model.depth 2 "
    "--model.heads 2 --batch_size 4 --device cpu --repeats 1",
    "bench data": "--seconds 0.05 --batch_size 8 --device cpu",
    "study": "--scale micro --train.device cpu --steps 2 --batch_size 4 --measures knn --verdict.checks 0",
    **dict.fromkeys((f"study {figure}" for figure in NESTED["study"]), TRAINED),
}
"""Options that make an example short, by verb; a resumed run has them already."""
NEEDS = {
    **dict.fromkeys(("knn", "linear", "linear --protocol paper", "embed", "finetune", "segment"), ("pretrain",)),
    **dict.fromkeys(("detect", "evaluate", "score", "export"), ("pretrain",)),
    "info": ("pretrain", "export"),
    **dict.fromkeys((f"study {figure}" for figure in NESTED["study"]), ("pretrain",)),
    **dict.fromkeys(("rank", "anomalies"), ("pretrain",)),
    "predict": ("finetune", "segment"),
    "report": ("pretrain", "finetune"),
}
"""Verbs whose examples make what those of another verb start from."""


def printed_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the commands at the end of a help text."""
    capsys.readouterr()
    with suppress(SystemExit):
        main([*verb.split(), "--help"])
    text = capsys.readouterr().out
    block = text[text.index("\nexamples:\n") :].removeprefix("\nexamples:\n").replace("\\\n", "")
    return [" ".join(line.split()) for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make the sets that the examples name, in a folder of their own, and go there."""
    from tests.end_to_end import test_detect, test_segment  # which import the same files as this one

    root = tmp_path_factory.mktemp("place")
    write_images(root / "my_images", each=6)
    write_images(root / "normal", each=6)
    for split in ("train", "val"):
        write_images(root / "labeled" / split, each=6)
    maps = test_segment.write_data(root / "both")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            shutil.copytree(maps / kind / split, root / "maps" / split / kind)
        shutil.copy(maps / "classes.txt", root / "maps" / split)
    (root / "objects").mkdir()
    test_detect.write_data(root / "objects")
    entry = {"name": "mine", "verb": "knn", "train": "labeled/train", "val": "labeled/val", "k": [3], "workers": 0}
    (root / "suite.yaml").write_text(yaml.safe_dump([entry]))
    nan = ["--optim.lr", "1e30", "--optim.clip", "null", "--verdict.checks", "0", "--steps", "4"]
    main(["pretrain", *SMALL, *nan, "--data", str(root / "my_images"), "--out", str(root / "diverged")])
    dump = min((root / "diverged" / "dumps").iterdir())
    shutil.copytree(dump, root / "runs" / "nan" / "dumps" / "step_00000003")
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


DONE = set[str]()


def run_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the examples of a verb, once, after those that they need."""
    if verb in DONE:
        return
    for other in NEEDS.get(verb, ()):
        run_examples(other, capsys)
    examples = printed_examples(verb, capsys)
    assert len(examples) == 2
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "hardpatch"
        assert arguments[: len(verb.split())] == verb.split() or verb.startswith("linear")
        shorter = [] if "--resume" in arguments else SHORTER.get(verb, "").split()
        if arguments[:2] == ["study", "plan"]:
            shorter += ["--images_per_second", "100"]
        code = main([*arguments, *shorter])
        said = capsys.readouterr()
        assert code == 0, f"{example}\n{said.out}{said.err}"
    DONE.add(verb)


@pytest.mark.parametrize("verb", EXAMPLES)
def test_examples_run(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hardpatch.pretrain.run.write_pictures", lambda job: ())  # other tests draw them
    monkeypatch.setattr("hardpatch.view.run.serve", lambda viewer, **options: None)  # it would go on for ever
    run_examples(verb, capsys)


def test_every_verb_has_examples() -> None:
    assert set(EXAMPLES) >= set(VERBS) | {f"{verb} {word}" for verb, words in NESTED.items() for word in words}
    for verb in VERBS:
        assert hasattr(import_module(f"hardpatch.cli.{VERBS[verb]}"), verb)


def test_examples_fit_a_terminal() -> None:
    assert [line for pair in EXAMPLES.values() for each in pair for line in each.splitlines() if len(line) > 78] == []
