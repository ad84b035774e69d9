"""Settings of detection: presets, mistakes, the schedule of the learning rate."""

import json
import math
from typing import Any

import pytest

from hardpatch.detect.settings import PRESETS, DetectSettings, check, step_learning_rate
from hardpatch.errors import UserError
from hardpatch.train.settings import changed, to_dict


def test_learning_rate_schedule_by_hand() -> None:
    run, total = DetectSettings(), 184_375  # ViTDet's steps for 100 epochs, whose drops are at 163,889 and 177,546.3
    assert run.total_steps(118_000) == total
    assert step_learning_rate(0, total, run) == pytest.approx(1e-7)
    assert step_learning_rate(125, total, run) == pytest.approx(1e-4 * 0.5005)
    assert [step_learning_rate(step, total, run) for step in (250, 163_888)] == [1e-4] * 2
    assert step_learning_rate(163_889, total, run) == pytest.approx(1e-5)
    assert step_learning_rate(177_546, total, run) == pytest.approx(1e-5)
    assert step_learning_rate(177_547, total, run) == pytest.approx(1e-6)
    assert step_learning_rate(10, 100, run) == 1e-4  # warm-up is a tenth of a short run


def test_presets_are_valid_and_survive_json() -> None:
    assert next(iter(PRESETS)) == "small"  # the default
    for run in PRESETS.values():
        check(run)
        assert changed(PRESETS["small"], json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "--batch_size: expected a whole number from 1, got 0"),
        ({"lr": 0.0}, "--lr: expected a number above 0, got 0.0"),
        ({"steps": -1}, "--steps: expected a whole number from 1, got -1"),
        ({"clip": math.nan}, "--clip: expected a number above 0, got nan"),
        ({"layer_decay": 1.5}, "--layer_decay: expected a number above 0, up to 1, got 1.5"),
        ({"jitter": (2.0, 1.0)}, "--jitter: expected 0 < lowest <= highest <= 1,000, got [2.0, 1.0]"),
        ({"accumulation_steps": 65}, "--accumulation_steps: expected a divisor of the batch size 64, got 65"),
        ({"window": 0}, "--window: expected a whole number from 1, got 0"),
        ({"rois": 0}, "--rois: expected a whole number from 1, got 0"),
        ({"warmup_steps": -1}, "--warmup_steps: expected a whole number from 0, got -1"),
        ({"anchor_scale": math.inf}, "--anchor_scale: expected a number above 0, up to 1,000, got inf"),
    ],
)
def test_invalid_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check(changed(DetectSettings(), setting))
    assert str(error.value) == message
