"""Display of a run: lines of text without a terminal, and a display that cannot end a training."""

from typing import Any

import pytest

from hardpatch.train.progress import PlainProgress, Silent, Unbreakable

ROW: dict[str, Any] = {"step": 20, "epoch": 1.25, "loss": 0.5, "images_per_second": 80.0, "gradient_norm": 3.0}


def test_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.start(0, 100, 64)
    progress.advance()
    progress.metrics(ROW)
    progress.metrics({"step": 20, "epoch": 1.25, "knn_top1": 0.25})
    progress.stop()
    assert capsys.readouterr().err.splitlines() == [
        "100 steps of 64 images",
        "step 20/100  epoch 1.25  loss 0.5000  images_per_second 80  left 1.1 min",  # 80 steps of 64 images
        "step 20/100  epoch 1.25  knn_top1 0.2500  left 1.1 min",
    ]


def test_a_resumed_run_names_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    PlainProgress().start(20, 100, 64)
    assert capsys.readouterr().err == "step 20 of 100, 64 images each\n"


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file"), SystemExit(1)])
def test_after_a_failed_write_nothing_more_is_shown(error: BaseException) -> None:
    calls = []

    class Broken(Silent):
        def metrics(self, row: dict[str, Any]) -> None:
            calls.append(row)
            raise error

    progress = Unbreakable(Broken())
    progress.start(0, 100, 64)
    for _ in range(2):
        progress.advance()
        progress.metrics(ROW)
    progress.stop()
    assert calls == [ROW]


def test_other_errors_are_not_hidden() -> None:
    class Wrong(Silent):
        def advance(self) -> None:
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        Unbreakable(Wrong()).advance()
