"""Runs with train.compile yes, including code generation; see also tests/pretrain/test_compile.py."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hardpatch.cli import main
from hardpatch.errors import UserError
from hardpatch.pretrain.compile import check_compiler
from hardpatch.train.checkpoint import newest
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL

TINY = [*SMALL, "--model.depth", "1", "--model.decoder_depth", "1", "--batch_size", "8", "--steps", "5"]
TINY += ["--train.log_every", "1", "--train.checkpoint_steps", "3"]


def test_a_compiled_run_equals_a_plain_one_and_resumes_as_one(tmp_path: Path) -> None:
    try:
        check_compiler(torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))

    def weights(folder: Path) -> list[str]:
        saved = newest(folder)
        assert saved is not None
        with safe_open(saved / "model.safetensors", "pt") as file:
            return sorted(file.keys())

    def losses(folder: Path) -> list[float]:
        return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]

    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    for folder, value in ((plain, "no"), (compiled, "yes")):
        assert main(["pretrain", *TINY, "--train.compile", value, "--out", str(folder)]) == 0
    assert len(losses(plain)) == 5
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    assert weights(compiled) == weights(plain)
    divided = tmp_path / "divided"
    several = ["--devices", "2", "--strategy", "fsdp2", "--train.compile", "yes", "--out", str(divided)]
    assert main(["pretrain", *TINY, *several]) == 0
    assert losses(divided) == pytest.approx(losses(plain), rel=1e-5)
    shutil.rmtree(compiled / "checkpoints" / "step_00000005")
    assert main(["pretrain", "--resume", "--train.compile", "no", "--out", str(compiled)]) == 0
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)


def test_no_compiler(tmp_path: Path, fails: Callable[..., str]) -> None:
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
        line = fails("pretrain", *TINY, "--train.compile", "yes", "--out", tmp_path / "run")
    assert line == (
        "hardpatch pretrain: train.compile: needs a C++ compiler on a CPU, and there is none; install g++ or set CXX, "
        "or use no"
    )
    assert not (tmp_path / "run").exists()
