"""Runs of the other verbs that are made longer with --resume."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import hardpatch
from hardpatch.errors import UserError
from hardpatch.train.metrics import read_metrics
from tests.end_to_end import test_jobs as known
from tests.end_to_end.test_jobs import STEPS, Job, assert_same_checkpoint, newest

data, encoder, jobs = known.data, known.encoder, known.jobs  # fixtures
VERBS: dict[str, Callable[..., Any]] = {
    "finetune": hardpatch.finetune,
    "linear": hardpatch.train_linear_probe,
    "segment": hardpatch.segment,
    "detect": hardpatch.detect,
    "tokenizer": hardpatch.train_tokenizer,
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", VERBS)
def test_a_longer_run_that_is_killed_ends_with_the_same_bits(
    name: str, jobs: dict[str, Job], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, verb = tmp_path / "run", VERBS[name]
    jobs[name](run, data)
    with pytest.raises(UserError, match=f"{STEPS} steps are done, and with this length the run has 5"):
        verb(out=run, resume=True, steps=5)
    verb(out=run, resume=True, steps=2 * STEPS, extend="rewarm")
    assert json.loads((run / "result.json").read_text())["steps"] == 2 * STEPS
    texts = yaml.safe_load((run / "config.yaml").read_text())["extensions"]
    assert texts == [f"after {STEPS} of {STEPS} steps: {2 * STEPS} steps, rewarm"]
    rates = [row["lr"] for row in read_metrics(run / "metrics.jsonl") if "lr" in row]
    assert rates[STEPS:] == pytest.approx(rates[:STEPS])
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(newest(other))
    verb(out=other, resume=True)
    assert_same_checkpoint(newest(run), newest(other))
