import json
import math
from pathlib import Path

import pytest
import torch

from hardpatch.errors import TrainingError
from hardpatch.methods.hpm import Losses, Masking, MinedMask
from hardpatch.methods.teacher import TeacherOutput
from hardpatch.patches import to_indices
from hardpatch.pretrain.vital_signs import RunningMeans, vital_signs
from hardpatch.train.metrics import MetricsLog, read_metrics


def losses(value: float) -> Losses:
    return Losses(torch.tensor(2 * value), torch.full((2, 3), value), torch.tensor(value), torch.rand(2, 3))


def test_means_are_over_what_was_added_since() -> None:
    means = RunningMeans(torch.device("cpu"))
    for value in (1.0, 2.0, 6.0):
        means.add(losses(value))
    assert means.read(1, 3) == {"loss": 6.0, "reconstruction_loss": 3.0, "predicting_loss": 3.0}
    means.add(losses(5.0)._replace(predicting=None))
    assert means.read(4, 4) == {"loss": 10.0, "reconstruction_loss": 5.0, "predicting_loss": 0.0}


def test_nan_stops_with_what_to_do() -> None:
    means = RunningMeans(torch.device("cpu"))
    means.add(losses(1.0))
    means.add(losses(math.nan))
    with pytest.raises(TrainingError, match=r"between steps 11 and 20.*optim.base_lr.*--resume"):
        means.read(11, 20)


def test_vital_signs_by_hand() -> None:
    # Two images of six patches, four masked, of which two are mined: patches 0 and 1 in both.
    difficulty = torch.tensor([[9.0, 8, 1, 2, 3, 4]]).repeat(2, 1)
    noise = torch.tensor([[0.9, 0.1, 0.8, 0.7, 0.6, 0.2], [0.1, 0.2, 0.9, 0.8, 0.7, 0.6]])
    mask = torch.tensor([[True, True, True, True, False, False]] * 2)
    true = torch.tensor([[4.0, 2.0, 1.0, 1.0], [6.0, 4.0, 1.0, 1.0]])
    predicted = torch.tensor([[4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 2.0, 1.0]])
    made = Losses(torch.tensor(0.0), true, torch.tensor(0.0), predicted)

    def problem(difficulty: torch.Tensor | None) -> MinedMask:
        return MinedMask(to_indices(mask), TeacherOutput(torch.zeros(2, 7, 1), difficulty, None), difficulty)

    signs = vital_signs(problem(difficulty), made, noise, 0.5, 0.6, (2, 3), Masking())
    # Five untied pairs an image; in the second one of them is the wrong way round.
    assert signs["pair_accuracy"].item() == pytest.approx(9 / 10)
    # At random the first image would mask 0, 2, 3, 4 and the second 2, 3, 4, 5: one of four mined patches is among
    # them.
    assert signs["mined_overlap"].item() == pytest.approx(1 / 4)
    assert signs["mined_loss_ratio"].item() == pytest.approx(4.0 / 1.0)
    assert "mined_overlap" not in vital_signs(problem(None), made, noise, 0.0, 0.6, (2, 3), Masking())
    tokens = made._replace(token_use={"token_entropy": torch.tensor(0.5)})
    assert vital_signs(problem(None), tokens, noise, 0.0, 0.6, (2, 3), Masking())["token_entropy"] == 0.5


def test_lines_after_the_checkpoint_are_dropped_and_a_cut_line_is_survived(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "lo')
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30]
    log = MetricsLog(tmp_path, step=20)
    log.write({"step": 25, "loss": 3.0})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 25]
