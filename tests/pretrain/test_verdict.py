"""Verdicts on runs of known outcome, from the metrics of their checks."""

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

from hardpatch.configuration import config
from hardpatch.pretrain.facts import Facts
from hardpatch.pretrain.verdict import Verdict, verdict

FACTS = Facts(
    target="pixels",
    moving=False,
    held_out=True,
    images=2000,
    epochs=50.0,
    steps=1562,
    batch_size=64,
    lr=1e-3,
    usual_lr=1e-3,
    mines=True,
    can_remember=True,
    folder="runs/a run",
)
TRIVIAL = {"check_mean_color": 0.9, "check_blurred_neighbors": 0.55, "check_nearest_patch": 1.1}
LABELS = {"check_queries": 512.0, "check_chance": 0.12}


def run(losses: list[float], end: dict[str, Any] | None = None, **start: float) -> list[dict[str, Any]]:
    """Return the metrics of checks with these losses, a good map, and features that changed."""
    checks: list[dict[str, Any]] = []
    for k, loss in enumerate(losses):
        check = {
            "step": 100 * k,
            "check_loss": loss,
            "check_train_loss": 0.99 * loss,
            "check_variation": 1.0,
            **TRIVIAL,
        }
        check |= {"check_map_correlation": 0.6, "check_map_error": 0.01, "check_masked_correlation": 0.7}
        check |= {"check_rankme": 9.0 + k, "mining_stopped": 0.0}
        checks.append(check | ({"check_start_neighbors": 0.3} if k else {}))
    checks[0] |= start
    checks[-1] |= end or {}
    return checks


FALL = [1.3, 0.8, 0.6, 0.51, 0.5, 0.5]


def test_a_run_that_learned() -> None:
    labels = {**LABELS, "check_knn_top1": 0.62, "check_linear_top1": 0.71}
    found = verdict(run(FALL, labels, check_knn_top1=0.50, check_linear_top1=0.58), FACTS)
    assert (found.learned, found.loss, found.map, found.decided_by) == ("yes", "settled", "upright", "labels")
    assert "linear probe 71.0 % after 58.0 % untrained (+13.0)" in found.reasons[0]
    assert found.suggestions == ()
    assert found.numbers["knn_top1"] == 0.62
    assert found.numbers["start_knn_top1"] == 0.50
    without = verdict(run(FALL), FACTS)
    assert (without.learned, without.decided_by) == ("yes", "images")
    assert str(without).startswith("Learned: yes - loss of held-out images 0.500 after 1.300 untrained, below")
    assert json.loads(json.dumps(without.to_dict()))["learned"] == "yes"


@pytest.mark.parametrize(
    ("knn", "linear", "learned"),
    [
        ((0.564, 0.578), (0.656, 0.660), "no"),  # 57.8 after 56.4 % and 66.0 after 65.6 %
        ((0.564, 0.630), (0.656, 0.726), "yes"),
        ((0.564, 0.600), (0.656, 0.670), "barely"),
        ((0.564, 0.500), (0.656, 0.600), "no"),
        ((0.564, 0.700), (0.656, 0.550), "barely"),  # one rose, the other fell
    ],
)
def test_labels_decide_by_the_sampling_error(
    knn: tuple[float, float], linear: tuple[float, float], learned: str
) -> None:
    end = {**LABELS, "check_knn_top1": knn[1], "check_linear_top1": linear[1]}
    found = verdict(run(FALL, end, check_knn_top1=knn[0], check_linear_top1=linear[0]), FACTS)
    assert (found.learned, found.decided_by) == (learned, "labels")
    large = {**end, "check_queries": 50_000.0}
    more = verdict(run(FALL, large, check_knn_top1=knn[0], check_linear_top1=linear[0]), FACTS)
    assert more.learned in (learned, "barely", "yes")  # a smaller error never takes a gain away
    assert (more.learned == "no") == (max(knn[1] - knn[0], linear[1] - linear[0]) <= 0)


def test_shuffled_labels_do_not_decide() -> None:
    end = {**LABELS, "check_knn_top1": 0.11, "check_linear_top1": 0.13}
    found = verdict(run(FALL, end, check_knn_top1=0.12, check_linear_top1=0.11), FACTS)
    assert (found.learned, found.decided_by) == ("yes", "images")
    assert any("the labels tell nothing" in reason for reason in found.reasons)


def test_a_gain_that_may_be_chance_does_not_outweigh_a_loss_above_the_mean_color() -> None:
    """The numbers of a real run with a rate 70 times too low (``plan_rules.py``, ``lr_1e-5``, crops of scenes)."""
    trivial = {"check_mean_color": 0.225, "check_blurred_neighbors": 0.152, "check_nearest_patch": 0.248}
    end = {"check_knn_top1": 0.67, "check_linear_top1": 0.807, "check_queries": 300.0, "check_chance": 0.3, **trivial}
    checks = run([1.476, 1.2, 0.9, 0.78], {**end, "check_start_neighbors": 0.84})
    checks[0] |= {"check_knn_top1": 0.693, "check_linear_top1": 0.767}
    found = verdict(checks, replace(FACTS, lr=1e-5, steps=700))
    assert (found.learned, found.decided_by) == ("no", "images")
    (labels,) = [reason for reason in found.reasons if "linear probe 80.7 % after 76.7 %" in reason]
    assert labels.endswith("such a gain may be chance, and the images decide")
    assert "--optim.lr 0.001" in found.suggestions[0][1]
    clear = verdict([checks[0], checks[1], checks[2], {**checks[-1], "check_linear_top1": 0.9}], FACTS)
    assert (clear.learned, clear.decided_by) == ("yes", "labels")


def test_accuracies_of_other_images_are_not_compared() -> None:
    """A run that is resumed with other ``verdict.images``, or by a version that classifies more of them."""
    end = {**LABELS, "check_knn_top1": 0.62, "check_linear_top1": 0.71}
    before = {"check_knn_top1": 0.50, "check_linear_top1": 0.58}
    assert verdict(run(FALL, end, **before, check_queries=512.0), FACTS).decided_by == "labels"
    found = verdict(run(FALL, end, **before, check_queries=300.0), FACTS)
    assert found.decided_by == "images"
    assert any("not the same images" in reason for reason in found.reasons)


def test_labels_that_are_too_easy_do_not_decide() -> None:
    """As those of a real run on images that pixels tell apart: 100 % before and after."""
    end = {**LABELS, "check_knn_top1": 0.99, "check_linear_top1": 1.0}
    found = verdict(run(FALL, end, check_knn_top1=0.98, check_linear_top1=1.0), FACTS)
    assert (found.learned, found.decided_by) == ("yes", "images")
    assert any("labels that easy leave no room for a gain" in reason for reason in found.reasons)
    worse = verdict(run(FALL, {**end, "check_knn_top1": 0.9}, check_knn_top1=0.98, check_linear_top1=1.0), FACTS)
    assert (worse.learned, worse.decided_by) == ("no", "labels")  # there is room for a loss
    one = verdict(run(FALL, end, check_knn_top1=0.9, check_linear_top1=1.0), FACTS)
    assert (one.learned, one.decided_by) == ("yes", "labels")


def test_a_rate_that_is_too_low() -> None:
    found = verdict(run([1.3, 1.299, 1.298, 1.297], {"check_start_neighbors": 0.98}), FACTS)
    assert (found.learned, found.loss) == ("no", "flat")
    assert "--optim.lr 0.004" in found.suggestions[0][1]


def test_a_short_run_whose_loss_still_falls_is_first_made_longer() -> None:
    checks = run([1.9, 1.3, 1.0, 0.8], {"check_start_neighbors": 0.82})
    found = verdict(checks, replace(FACTS, steps=240, epochs=40.0))
    assert (found.learned, found.loss) == ("barely", "falling")
    assert found.suggestions[0][0] == "5 times the epochs"
    assert "--epochs 200.0 " in found.suggestions[0][1]
    low = verdict(checks, replace(FACTS, steps=240, lr=1e-5))
    assert "--optim.lr 0.001" in low.suggestions[0][1]  # a plan's rate, not four times this one
    long = verdict(checks, FACTS)
    assert "--optim.lr 0.004" in long.suggestions[0][1]
    assert "--epochs 100.0" in long.suggestions[1][1]


def test_a_rate_that_is_too_high() -> None:
    found = verdict(run([1.3, 0.9, 0.9, 0.9], {"check_rankme": 1.05}), FACTS)
    assert (found.learned, found.loss) == ("no", "flat")
    assert found.reasons[0].startswith("all features are alike")
    assert "--optim.lr 0.00025" in found.suggestions[0][1]


def test_a_rate_that_is_too_high_for_most_directions() -> None:
    """The numbers of a real run with 160 times its learning rate (``benchmarks/plan_rules.py``, arm ``lr_1e-1``)."""
    found = verdict(run([1.43, 0.71, 0.70], {"check_rankme": 2.2}, check_rankme=21.0), FACTS)
    assert found.learned == "barely"
    assert "--optim.lr 0.00025" in found.suggestions[0][1]
    more = verdict(run([1.43, 0.71, 0.70], {"check_rankme": 7.1}, check_rankme=21.0), FACTS)  # over a third
    assert not any("--optim.lr" in command for _, command in more.suggestions)


def test_a_run_that_was_too_short_to_leave_the_mean_color() -> None:
    found = verdict(run([1.3, 0.92, 0.91, 0.9]), replace(FACTS, steps=400))
    assert (found.learned, found.loss) == ("no", "flat")
    assert any("stays at that of the mean color" in reason for reason in found.reasons)
    assert "--batch_size 32" in found.suggestions[0][1]


def test_one_image_repeated() -> None:
    found = verdict(run([1.3, 0.4, 0.1, 0.01], check_variation=0.001), FACTS)
    assert found.learned == "no"
    assert "all images are the same" in found.reasons[0]
    assert found.suggestions == ()


def test_noise_has_nothing_to_predict() -> None:
    noise = {"check_mean_color": 1.0, "check_blurred_neighbors": 1.3, "check_nearest_patch": 2.0}
    checks = [{**check, **noise} for check in run([1.6, 1.05, 1.0, 1.0])]
    found = verdict(checks, FACTS)
    assert (found.learned, found.loss) == ("no", "flat")
    nearly = verdict([*checks[:-1], {**checks[-1], "check_loss": 0.99}], FACTS)
    assert nearly.learned == "no"
    assert "0.990 after 1.600 untrained, no better than the best trivial predictor's" in nearly.reasons[0]


def test_an_upside_down_map_is_told_whatever_was_learned() -> None:
    upside_down = {"check_map_correlation": -0.44}
    found = verdict(run(FALL, upside_down), FACTS)
    assert (found.learned, found.map) == ("yes", "upside down")
    assert "--fast.remember true" in found.suggestions[0][1]
    other = verdict(run(FALL, upside_down), replace(FACTS, can_remember=False))
    assert "--method.alpha_end 0" in other.suggestions[0][1]
    stopped = verdict(run(FALL, {**upside_down, "mining_stopped": 1.0}), FACTS)
    assert any("mining was stopped" in reason for reason in stopped.reasons)
    without = [{k: v for k, v in check.items() if "map" not in k} for check in run(FALL)]
    assert verdict(without, replace(FACTS, mines=False)).map == "no map"


def test_overfitting_needs_held_out_images() -> None:
    losses = [1.3, 0.6, 0.5, 0.56]
    found = verdict(run(losses, {"check_train_loss": 0.35}), FACTS)
    assert found.loss == "overfitting"
    assert any("0.560 on held-out images, 0.350 on training images" in reason for reason in found.reasons)
    checks = [{k: v for k, v in check.items() if k != "check_train_loss"} for check in run(losses)]
    seen = verdict(checks, replace(FACTS, held_out=False))
    assert seen.loss != "overfitting"
    assert any("not measured" in reason for reason in seen.reasons)


def test_a_loss_that_still_falls_asks_for_more_epochs() -> None:
    found = verdict(run([1.3, 0.9, 0.8, 0.7, 0.6, 0.5]), FACTS)
    assert found.loss == "falling"
    assert "--epochs 100.0" in found.suggestions[0][1]


@pytest.mark.parametrize(("moving", "target"), [(False, "visual tokens"), (True, "features of the teacher")])
def test_targets_without_a_trivial_predictor(moving: bool, target: str) -> None:
    checks = [{k: v for k, v in check.items() if k not in TRIVIAL} for check in run([8.9, 7.0, 6.0, 5.9])]
    found = verdict(checks, replace(FACTS, moving=moving, target=target))
    assert found.learned == "yes"
    assert target in found.reasons[0]
    same = [{**check, "check_start_neighbors": 0.99} for check in checks]
    assert verdict(same, replace(FACTS, moving=moving, target=target)).learned != "yes"


def commands(found: Verdict) -> list[list[str]]:
    return [shlex.split(command) for _, command in found.suggestions]


def test_suggested_commands_are_settings() -> None:
    """Every command names the file of the run, another folder, and settings that exist."""
    few = replace(FACTS, steps=400)
    runs = [verdict(run([1.3, 1.29, 1.28], {"check_map_correlation": -0.5}), facts) for facts in (FACTS, few)]
    runs += [verdict(run([1.3, 0.7, 0.6]), few), verdict(run([1.3, 0.5, 0.6], {"check_train_loss": 0.3}), FACTS)]
    seen = [command for found in runs for command in commands(found)]
    assert len(seen) >= 5
    for command in seen:
        assert command[:3] == ["hardpatch", "pretrain", "--config"]
        assert command[3] == "runs/a run/config.yaml"
        assert command[-2] == "--out"
        assert command[-1].startswith("runs/a run_")
        config.build({"epochs": 3.0}, command[4:-2])
