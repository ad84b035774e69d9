"""hardpatch linear --protocol paper, and the quick protocol beside it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hardpatch.cli import main
from hardpatch.data.augment import EvalTransform
from hardpatch.data.sources import open_source
from hardpatch.finetune.file import load_classifier
from hardpatch.finetune.trainer import FinetuneJob
from hardpatch.interchange.load import load
from hardpatch.train.checkpoint import newest
from hardpatch.train.metrics import read_metrics
from hardpatch.train.run_folder import read_values
from tests.end_to_end.conftest import write_images

BRIEF = ["--epochs", "8", "--batch_size", "10", "--lr", "0.3", "--warmup_epochs", "2", "--workers", "0"]


def command(run: Path, images: Path, out: Path, *options: str) -> list[str]:
    sets = ["--train", str(images), "--val", str(images), "--device", "cpu"]
    return ["linear", str(run), "--protocol", "paper", *sets, "--out", str(out), *BRIEF, *options]


def test_images_become_a_probe(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "probe", tmp_path / "result.json"
    place_matters = ["--flip", "0", "--crop_scale", "0.8", "1", "--epochs", "30"]
    assert main(command(run, images, out, *place_matters, "--json", str(file))) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(file.read_text())
    assert result == json.loads((out / "result.json").read_text())
    assert (result["verb"], result["steps"], result["images"]) == ("linear", 90, {"train": 30, "val": 30})
    assert printed == f"top-1 {result['top1']:.2%}, top-5 100.00% after the last epoch"
    assert result["top1"] > 0.8  # a bright bar left or right
    values = read_values(out)
    assert (values["verb"], values["optimizer"], values["frozen"], values["epochs"]) == ("linear", "sgd", True, 30.0)
    evaluations = [row for row in read_metrics(out / "metrics.jsonl") if "top1" in row]
    assert [row["step"] for row in evaluations] == [90]  # at the end only
    assert "hardpatch linear --resume --out" in (out / "README.md").read_text()

    # the encoder is that of the run, and a plain loop gives the same accuracy
    model, classes, size = load_classifier(out)
    assert classes == ("class_0", "class_1")
    before = load(run).host.encoder.state_dict()
    after = model.encoder.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    source, correct = open_source(images), 0
    for k in range(len(source)):
        pixels = EvalTransform(size)(source.image(k))[None]
        correct += int(model(model.normalize(pixels)).argmax()) == source.label(k)
    assert result["top1"] == correct / 30
    assert main(["linear", "--protocol", "paper", "--resume", "--out", str(out)]) == 0  # nothing is left to do


def test_a_stopped_probe_says_how_to_go_on_and_ends_the_same(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(command(run, images, whole)) == 0
    step = FinetuneJob.train_step

    def stop_at_seven(self: FinetuneJob, *arguments: object, **options: object) -> None:
        step(self, *arguments, **options)  # type: ignore[arg-type]
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FinetuneJob, "train_step", stop_at_seven)
    assert main(command(run, images, stopped)) == 128 + signal.SIGTERM
    resume = f"hardpatch linear --protocol paper --resume --out {stopped}"
    assert capsys.readouterr().out.strip().endswith(resume)
    assert main(resume.split()[1:]) == 0
    files = [newest(folder) for folder in (whole, stopped)]
    for name in ("model.safetensors", "training.safetensors"):
        one, other = (load_file(file / name) for file in files if file is not None)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert sorted(one) == ["head.bias/momentum_buffer", "head.weight/momentum_buffer"]


def test_both_protocols_say_what_they_do(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100000")
    sets = ["--train", str(images), "--val", str(images), "--device", "cpu", "--workers", "0"]
    assert main(["linear", str(run), *sets, "--epochs", "2"]) == 0
    assert ", picked on --val; " in capsys.readouterr().out
    assert main(["linear", str(run), *sets, "--epochs", "2", "--base_lr", "0.1"]) == 0
    assert "picked on --val" not in capsys.readouterr().out
    assert main(["knn", str(run), *sets]) == 0
    assert "(best k 10, picked on --val; k 20 as in DINO " in capsys.readouterr().out
    for arguments, texts in {
        ("linear",): ("the best rate is picked on --val", "sgd as in HPM and MoCo v3, or lars as in MAE"),
        ("linear", "--protocol", "paper"): ("(Table S3)", "not chosen on --val", "(default: 4096)", "(default: 0.001)"),
    }.items():
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        text = capsys.readouterr().out
        assert all(part in text for part in texts)
    assert "--preset" not in text  # there is one


def test_mistakes(fails: Callable[..., str], run: Path, images: Path, tmp_path: Path) -> None:
    good = command(run, images, tmp_path / "new")
    assert "--protocol: invalid choice: 'papr'" in fails("linear", run, "--protocol", "papr")
    assert "did you mean '--epochs'?" in fails(*good, "--epoch", "3")
    assert "unrecognized arguments: --out" in fails("linear", run, "--train", images, "--val", images, "--out", "x")
    assert "--accumulation_steps: expected 1" in fails(*good, "--accumulation_steps", "2")
    assert "no checkpoint" in fails(*command(tmp_path, images, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_suite_can_hold_both_protocols(run: Path, images: Path, tmp_path: Path) -> None:
    sets = {"train": str(images), "val": str(images), "verb": "linear", "device": "cpu"}
    brief = {"epochs": 1, "warmup_epochs": 0, "batch_size": 10}
    suite = [{"name": "quick", **sets, "epochs": 2}, {"name": "paper", **sets, **brief, "protocol": "paper"}]
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    assert main(["evaluate", str(run), "--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "linear-paper" / "result.json").read_text())
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"| paper | linear top-1 | {100 * result['top1']:.2f} % |" in table
    assert (tmp_path / "out" / "linear-quick.json").is_file()


def test_more_classes_than_two(run: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", classes=3, each=6)
    assert main(command(run, images, tmp_path / "out", "--weights", "random", "--pool", "class")) == 0
    model, classes, _ = load_classifier(tmp_path / "out")
    assert (len(classes), model.pool, model.frozen) == (3, "class", True)
    initial = load(run, "random").host.encoder.state_dict()
    assert model.encoder.state_dict()["cls_token"].shape == initial["cls_token"].shape
