"""The replay of a dumped step names the module that was made to fail, and no other."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hardpatch
from hardpatch.cli import main
from hardpatch.errors import UserError
from hardpatch.models.block import Block
from hardpatch.pretrain.first_not_finite import FirstNotFinite
from hardpatch.pretrain.replay import ReplayResult
from tests.end_to_end.conftest import SMALL, write_images

Plant = Callable[[Tensor], Tensor]


class NanInBackward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * math.inf


def infinite_row(x: Tensor) -> Tensor:
    row = torch.arange(len(x)).view(-1, *[1] * (x.ndim - 1)) == 2
    return torch.where(row, math.inf, x)


PLANTS: dict[str, Plant] = {"forward": infinite_row, "backward": NanInBackward.apply}


def plant(patch: pytest.MonkeyPatch, where: Callable[[Block], bool], made: Plant) -> None:
    original = Block.forward

    def forward(self: Block, *arguments: Any, **more: Any) -> Tensor:
        out = original(self, *arguments, **more)
        return made(out) if where(self) and torch.is_grad_enabled() else out

    patch.setattr(Block, "forward", forward)


def is_planted(block: Block) -> bool:
    return getattr(block, "planted", False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "labeled", each=6)


def marked(model: nn.Module) -> None:
    model.get_submodule("host.encoder.blocks.1").planted = True  # type: ignore[assignment]


def dumped(images: Path, out: Path, how: str, *more: str) -> Path:
    """Train with a planted fault in the student's second block, from the third step on; return the dump."""
    from hardpatch.pretrain.step import Learner

    with pytest.MonkeyPatch.context() as patch:
        original = Learner.train_step

        def train_step(self: Learner, *arguments: Any, **options: Any) -> Any:
            if self.step == 2:
                marked(self.model)
            return original(self, *arguments, **options)

        patch.setattr(Learner, "train_step", train_step)
        patch.setattr("hardpatch.pretrain.run.write_pictures", lambda job: ())
        plant(patch, is_planted, PLANTS[how])
        command = ["pretrain", *SMALL, "--data", str(images), "--steps", "4", "--verdict.checks", "0"]
        assert main([*command, "--batch_size", "8", "--out", str(out), *more]) == 0
    return out / "dumps" / "step_00000003"


@pytest.fixture(scope="module")
def dumps(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dumps")
    return {how: dumped(images, folder / how, how) for how in PLANTS}


@pytest.mark.parametrize("how", PLANTS)
def test_the_planted_module_is_named(
    how: str, dumps: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = FirstNotFinite.__enter__

    def enter(self: FirstNotFinite) -> FirstNotFinite:
        marked(self._networks["student"])
        return original(self)

    monkeypatch.setattr(FirstNotFinite, "__enter__", enter)
    plant(monkeypatch, is_planted, PLANTS[how])
    assert main(["replay", str(dumps[how])]) == 0
    printed = capsys.readouterr().out
    assert f"first module: student.host.encoder.blocks.1 (Block), {how} pass: its " in printed
    assert main(["replay", str(dumps[how]), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["step"], result["culprit"]["module"]) == (3, "student.host.encoder.blocks.1")
    (given,), (made,) = result["culprit"]["inputs"], result["culprit"]["outputs"]
    assert given["bad"] == 0
    assert given["low"] < given["high"]
    assert made["shape"] == given["shape"] == [8, 17, 32]
    assert made["bad"] == (17 * 32 if how == "forward" else 8 * 17 * 32)
    assert len(result["gradients_not_finite"]) > 10
    assert result["norm"] > 0
    if how == "forward":  # the third sample
        index = load_file(dumps[how] / "batch_0.safetensors")["indices"][2]
        assert result["largest"][0][0].endswith(f"class_{index // 6}/{sorted(map(str, range(6)))[index % 6]}.jpg")
        assert result["largest"][0][1] == math.inf


def test_a_step_that_is_finite_this_time(dumps: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(dumps["forward"]), "--precision", "bf16"]) == 1
    printed = capsys.readouterr().out
    assert "not reproduced: loss and gradients are finite this time" in printed
    assert "differs  precision: fp32 in the training, bf16 here" in printed


def test_the_loss_is_that_of_the_step(images: Path, tmp_path: Path) -> None:
    """Without the planted fault the replay computes what the training would have: masks, drop path, teacher."""
    dump = dumped(images, tmp_path / "bad", "backward", "--model.drop_path", "0.3")
    command = ["pretrain", *SMALL, "--data", str(images), "--steps", "4", "--verdict.checks", "0"]
    more = ["--model.drop_path", "0.3", "--batch_size", "8", "--train.log_every", "1"]
    assert main([*command, *more, "--out", str(tmp_path / "good")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "good" / "metrics.jsonl").read_text().splitlines()]
    result: ReplayResult = hardpatch.replay(dump)
    assert not result.reproduced
    assert result.loss == rows[2]["loss"]


def test_pixels_that_are_nan_already(dumps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardpatch.methods.hpm.HPM.normalize", lambda self, pixels: pixels.float() * math.nan)
    result = hardpatch.replay(dumps["forward"])
    assert result.reproduced
    assert (result.culprit, result.entered) == (None, "teacher.host.encoder.patch_embed")


def test_what_is_no_dump(dumps: dict[str, Path], images: Path, tmp_path: Path) -> None:
    dump, run = dumps["forward"], dumps["forward"].parents[1]
    with pytest.raises(UserError, match=rf"^DUMP: expected a folder RUN/dumps/step_\*.*is a run with {dump}$"):
        hardpatch.replay(run)
    with pytest.raises(UserError, match=r"^DUMP: expected a folder RUN/dumps/step_\* with dump.json, got "):
        hardpatch.replay(tmp_path)
    facts = json.loads((dump / "dump.json").read_text())

    def changed(**values: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(dump, folder)
        (folder / "dump.json").write_text(json.dumps(facts | values))
        return folder

    with pytest.raises(UserError, match=r"expected a dump of hardpatch pretrain, .* is one of a classifier"):
        hardpatch.replay(changed(metadata={"kind": "classifier"}))
    with pytest.raises(UserError, match="expected step as int, got x"):
        hardpatch.replay(changed(step="x"))
    huge = facts["metadata"]["config"] | {"model": facts["metadata"]["config"]["model"] | {"depth": 900}}
    with pytest.raises(UserError, match=r"^DUMP: .*weights.safetensors: its metadata does not describe a network"):
        hardpatch.replay(changed(metadata=facts["metadata"] | {"config": huge}))
    folder = changed()
    save_file({"images": torch.zeros(1)}, folder / "batch_0.safetensors")
    with pytest.raises(UserError, match=r"expected the tensors of a batch, it lacks indices, labels"):
        hardpatch.replay(folder)
    (folder / "batch_0.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"batch_0.safetensors is not a safetensors file"):
        hardpatch.replay(folder)
    (folder / "dump.json").write_text("{")
    with pytest.raises(UserError, match=r"dump.json: expected metadata as JSON"):
        hardpatch.replay(folder)


def test_a_healthy_step_is_not_changed_by_watching(dumps: dict[str, Path]) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    layers = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 1))
    layers(x).sum().backward()
    assert x.grad is not None
    expected = [x.grad.clone(), *[p.grad.clone() for p in layers.parameters() if p.grad is not None]]
    x.grad = None
    layers.zero_grad()
    with FirstNotFinite({"net": layers}) as watch:
        layers(x).sum().backward()
    assert watch.culprit is None
    assert all(map(torch.equal, expected, [x.grad, *[p.grad for p in layers.parameters()]]))  # type: ignore[arg-type]
    with torch.no_grad():
        layers.get_parameter("2.weight").fill_(3e38)
    with FirstNotFinite({"net": layers}) as watch:
        (layers(x) * 10).sum().backward()
    assert watch.culprit is not None
    assert (watch.culprit.module, watch.culprit.during) == ("net.2", "forward")
