"""Options of a suite's entries as arguments of the verb."""

from pathlib import Path

import yaml

from hardpatch.cli.settings import training_parser
from hardpatch.segment.settings import PRESETS
from hardpatch.study.suite import ON_OR_OFF, read_suite


def test_false_turns_off_what_can_be_on_by_itself(tmp_path: Path) -> None:
    entry = {"name": "ADE20K", "verb": "segment", "reduce_zero_label": False, "photometric": False, "train": "ade"}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump([entry, {**entry, "name": "on", "reduce_zero_label": True}]))
    off, on = read_suite(tmp_path / "suite.yaml")
    assert set(off.arguments) == {"--no-reduce_zero_label", "--no-photometric", "--train", "ade"}
    assert "--reduce_zero_label" in on.arguments


def test_false_leaves_other_flags_out(tmp_path: Path) -> None:
    entry = {"name": "demo", "verb": "knn", "random_baseline": False, "no_cache": False, "cache": None, "k": 10}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump([entry]))
    (measurement,) = read_suite(tmp_path / "suite.yaml")
    assert measurement.arguments == ("--k", "10")


def test_every_setting_of_segment_that_can_be_on_is_known() -> None:
    parser = training_parser("segment", "", PRESETS)
    two_way = {action.dest for action in parser._actions if f"--no-{action.dest}" in action.option_strings}
    assert two_way <= set(ON_OR_OFF)
