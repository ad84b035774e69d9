"""Export of a run from the command line, and mistakes."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch.testing import assert_close

import hardpatch
from hardpatch.cli import main
from hardpatch.interchange.backbone import load_backbone

Fails = Callable[..., str]


@torch.no_grad()
def test_a_trained_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = hardpatch.load(run)
    images = torch.randn(2, 3, 32, 32)
    expected = model.encode(images)
    for to, name in (("timm", "vit.safetensors"), ("timm", "timm"), ("hf", "vit")):
        command = ["export", str(run), "--to", to, "--out", str(tmp_path / name)]
        assert main([*command, "--json", str(tmp_path / "result.json")]) == 0
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["path"] == str(tmp_path / name)
        assert max(result["files"]["png"], result["files"]["jpeg"]) < 1e-5
        printed = capsys.readouterr().out
        library = {"timm": "timm", "hf": "transformers"}[to]
        checked = r"checked from a PNG and a JPEG file: largest difference (0|\de-\d\d) of the largest output"
        assert re.search(rf"{checked} \({library} \d", printed)
        assert f"  {result['preprocessing']}\n" in printed
        code = next(line.strip() for line in printed.splitlines() if line.startswith("  "))
        exported: Any = eval(code, {"timm": timm, "transformers": transformers}).eval()
        features = exported.forward_features(images) if to == "timm" else exported(images).last_hidden_state
        assert_close(features, expected, rtol=0, atol=1e-5)
        match = re.search(r"on a random image, (\S+) on real images \(outputs up to", printed)
        assert match is not None
        assert float(match[1]) < 1e-5
        assert "images: 32 x 32, pixels in [0, 1] normalized with mean 0.485, 0.456, 0.406" in printed
    reloaded = load_backbone(tmp_path / "vit.safetensors").encoder.eval()
    assert torch.equal(reloaded(images), expected)
    mae = ["export", str(run), "--to", "hf", "--form", "vit_mae", "--out", str(tmp_path / "mae")]
    assert main(mae) == 0
    assert "ViTMAEForPreTraining.from_pretrained" in capsys.readouterr().out
    teacher = [
        "export",
        str(run),
        "--to",
        "timm",
        "--weights",
        "teacher",
        "--out",
        str(tmp_path / "new" / "t.safetensors"),
    ]
    assert main(teacher) == 0
    reloaded = load_backbone(tmp_path / "new" / "t.safetensors").encoder.eval()
    assert torch.equal(reloaded(images), hardpatch.load(run, "teacher").encode(images))


def test_mistakes(fails: Fails, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    to_timm, to_hf = ["--to", "timm", "--out", out / "vit.safetensors"], ["--to", "hf", "--out", out]
    assert "does not exist" in fails("export", tmp_path / "missing", *to_timm)
    assert "--out" in fails("export", run, "--to", "timm")
    assert "--to" in fails("export", run, "--out", out)
    assert "invalid choice: 'tflite'" in fails("export", run, "--to", "tflite", "--out", out)
    assert "ends in .safetensors" in fails("export", run, "--to", "timm", "--out", tmp_path / "vit.pth")
    assert "exists and is never overwritten" in fails("export", run, "--to", "hf", "--out", run)
    assert "only --to hf has forms" in fails("export", run, *to_timm, "--form", "vit")
    assert "only --to onnx has parts" in fails("export", run, *to_timm, "--part", "encoder")
    assert "ends in .onnx" in fails("export", run, "--to", "onnx", "--out", out)
    assert "ends in .pth" in fails("export", run, "--to", "reference", "--out", out)
    assert "expected a new folder" in fails("export", run, "--to", "torchvision", "--out", tmp_path / "a.pth")
    assert "only --form vit_mae has a decoder" in fails("export", run, *to_hf, "--decoder_heads", 4)
    assert "did you mean '--weights'?" in fails("export", run, *to_hf, "--weight", "teacher")
    assert "which a teacher lacks" in fails("export", run, *to_hf, "--form", "vit_mae", "--weights", "teacher")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": print}))
    assert "evil.pth" in fails("export", tmp_path / "evil.pth", *to_hf)
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    assert "no embedding of patches by a name that is known" in fails("export", tmp_path / "other.pth", *to_hf)
    assert not out.exists()
