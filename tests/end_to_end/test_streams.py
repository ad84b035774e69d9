"""Trainings from shards and by row groups: the same as from the files, also after a kill and in several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hardpatch.cli import main
from hardpatch.data import parquet
from hardpatch.data.sources import open_source
from hardpatch.train.metrics import read_metrics
from tests.data.small import MANY_WORKERS, png, write_parquet
from tests.end_to_end.conftest import SMALL

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


def test_a_run_by_row_groups_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    path = write_parquet(tmp_path / "a.parquet", [png(3 * k) for k in range(64)], row_group_size=8)
    settings = [*SMALL, "--data", str(path), "--data.shuffle", "row_groups", "--data.shuffle_window", "2"]
    settings += ["--verdict.checks", "0", "--train.log_every", "1", "--train.checkpoint_steps", "3"]
    assert main(["pretrain", *settings, "--steps", "8", "--out", str(tmp_path / "whole")]) == 0
    assert "data.shuffle row_groups: by row groups of 8 images, 2 of 8 mixed at a time" in capsys.readouterr().err
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step_00000008")
    assert main(["pretrain", "--resume", "--out", str(tmp_path / "part")]) == 0
    whole, part = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "part"))
    assert [row["loss"] for row in whole] == [row["loss"] for row in part]


def pack(source: Path, out: Path, images_per_shard: int = 8) -> Path:
    command = ["shard", str(source), "--out", str(out), "--images_per_shard", str(images_per_shard)]
    assert main([*command, "--workers", "0"]) == 0
    return out


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(images, tmp_path_factory.mktemp("packed") / "shards")


VERBS = {
    "knn": ["knn", "RUN", "--train", "DATA", "--val", "DATA", "--k", "3", "--json", "OUT"],
    "linear": ["linear", "RUN", "--train", "DATA", "--val", "DATA", "--json", "OUT"],
    "finetune": [
        "finetune",
        "RUN",
        "--train",
        "DATA",
        "--val",
        "DATA",
        "--preset",
        "tiny",
        *("--warmup_epochs", "0"),
        "--epochs",
        "1",
        "--out",
        "OUT",
    ],
    "stats": ["stats", "DATA", "--json", "OUT"],
    "check": ["check", "DATA", "--labels", "--json", "OUT"],
    "embed": ["embed", "RUN", "DATA", "--out", "OUT"],
}


def numbers(value: Any) -> Any:
    """Return the values of a result without those that paths and times make differ."""
    if isinstance(value, dict):
        return {key: numbers(part) for key, part in value.items() if not ("second" in key or key in DIFFERENT)}
    return [numbers(part) for part in value] if isinstance(value, list) else value


DIFFERENT = (
    "data",
    "run",
    "weights",
    "out",
    "path",
    "images_per_second",
    "left_out",
    "source",
    "name",
    "first",
    "summary",
)


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_give_the_same_from_shards(verb: str, images: Path, shards: Path, run: Path, tmp_path: Path) -> None:
    results: list[Any] = []
    for data in (images, shards):
        out = tmp_path / f"{data.name}{'.parquet' if verb == 'embed' else ''}"
        values = {"RUN": str(run), "DATA": str(data), "OUT": str(out)}
        assert main([values.get(word, word) for word in VERBS[verb]]) == 0
        if verb == "embed":
            results.append(np.stack(pq.read_table(out)["embedding"].to_numpy()).tolist())
        else:
            results.append(numbers(json.loads((out / "result.json" if out.is_dir() else out).read_text())))
    assert results[0] == results[1]


@pytest.mark.parametrize(("name", "val"), [("cifar10", "test"), ("tiny_imagenet50", "val")])
def test_knn_of_real_sets(name: str, val: str, shared: Path, run: Path, tmp_path: Path) -> None:
    paths = []
    for split in ("train", val):
        whole = open_source(shared / "data" / name / f"{split}.parquet")
        labels_of = np.array([whole.label(i) for i in range(len(whole))])
        chosen = np.concatenate([np.flatnonzero(labels_of == k)[:6] for k in np.unique(labels_of)]).tolist()
        (tmp_path / split).mkdir()
        data = [whole.encoded(i) for i in chosen]
        labels = [whole.label(i) for i in chosen]
        paths.append(write_parquet(tmp_path / split / "a.parquet", data, labels, whole.classes))
    packed = [pack(path, tmp_path / f"{path.parent.name}_shards", 70) for path in paths]
    accuracies = []
    for k, (train, test) in enumerate((paths, packed)):
        out = tmp_path / f"{k}.json"
        assert main(["knn", str(run), "--train", str(train), "--val", str(test), "--json", str(out)]) == 0
        accuracies.append(numbers(json.loads(out.read_text())))
    assert accuracies[0] == accuracies[1]


def test_two_processes_killed_in_the_middle_learn_what_one_learns(shards: Path, images: Path, tmp_path: Path) -> None:
    """One process trains from the files, and two from their shards."""
    common = ["pretrain", *SMALL, "--steps", "20"]
    common += ["--train.checkpoint_steps", "5", "--train.log_every", "1", "--verdict.checks", "0"]
    assert main([*common, "--data", str(images), "--out", str(tmp_path / "one")]) == 0
    data = ["--data", f"{shards}/shard-{{000000..000003}}.tar"]
    start = [sys.executable, "-m", "hardpatch", *common, *data, "--devices", "2", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(start, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    while not any(row["step"] >= 7 for row in read_metrics(tmp_path / "two" / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    resume = [sys.executable, "-m", "hardpatch", "pretrain", "--resume", "--devices", "2"]
    subprocess.run([*resume, "--out", str(tmp_path / "two")], env=environment, check=True, capture_output=True)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    accuracies = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.json"
        command = ["knn", str(tmp_path / name), "--train", str(shards), "--val", str(images), "--k", "5"]
        assert main([*command, "--json", str(out)]) == 0
        accuracies.append(numbers(json.loads(out.read_text())))
    assert accuracies[0] == accuracies[1]
