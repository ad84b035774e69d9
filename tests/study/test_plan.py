"""Plans: which rows share a run, what comes first, which measurements are made, what is left out and why."""

import pytest

from hardpatch.study import rows
from hardpatch.study.plan import Plan, Task
from tests.study.small import plan_of


def tasks(plan: Plan) -> dict[str, Task]:
    return {task.run_name: task for stage in plan.stages for task in stage}


def test_rows_with_the_same_settings_share_a_run_in_all_tables() -> None:
    plan = plan_of("table1", "table2", "table3", "table4", "tableS4", weights={})
    default = {key for key, name in plan.runs.items() if name == "hpm"}
    assert {table for table, _, _ in default} == {"table1", "table2", "table3", "table4", "tableS4"}
    assert plan.runs["table1", "RGB (MAE)", False] == plan.runs["table4", "none (MAE)", False] == "mae"
    assert plan.runs["table1", "RGB + predicting loss", False] == "hpm-alpha_end_0"
    assert plan.runs["table2", "gamma 0.75, random (alpha 0)", False] == "hpm-alpha_end_0"
    assert plan.runs["table3", "manner: random", False] == "hpm-alpha_end_0"
    assert plan.runs["tableS4", "1 block", False] == "hpm"  # micro has one block, too
    assert plan.runs["tableS4", "width 512", False] == "hpm"
    assert plan.runs["tableS4", "width 128", False] == "hpm-decoder_width_4"
    assert len(set(plan.runs.values())) < len(plan.runs)


@pytest.mark.parametrize("scale", ["paper", "tiny", "cpu", "micro"])
def test_runs_with_other_settings_have_other_names(scale: str) -> None:
    plan = plan_of(*rows.names(), scale=scale, data="images", weights={"dino": "d", "clip": "c"})
    by_name = tasks(plan)
    assert len({repr((task.run, task.keep, task.kind)) for task in by_name.values()}) == len(by_name)
    assert all(name.isascii() and "/" not in name and len(name) < 100 for name in by_name)


def test_seeds_count_from_the_seed_of_the_user() -> None:
    plan = plan_of("table4", seeds=2, settings=("--seed", "5"))
    (stage,) = plan.stages
    assert [task.run.seed for task in stage] == [5] * 3 + [6] * 3
    assert [task.folder.name for task in stage] == ["seed_0"] * 3 + ["seed_1"] * 3


def test_rows_without_frozen_weights_are_left_out_with_a_reason() -> None:
    plan = plan_of("table1", weights={"dino": "x"})
    assert set(plan.reasons.values()) == {"it needs --clip_weights FILE"}
    assert {task.run.method.frozen for task in plan.stages[-1]} == {None, "dino", "hardpatch"}


def test_the_network_that_stands_in_for_dino_and_clip_is_trained_first_and_not_at_the_scale_of_the_paper() -> None:
    plan = plan_of("table1", weights={})
    assert [task.kind for task in plan.stages[0]] == ["supervised_teacher"]
    plan = plan_of("table1", scale="paper", weights={"dino": "d", "clip": "c"})
    assert all(task.kind == "pretrain" for stage in plan.stages for task in stage)
    assert set(plan.reasons.values()) == {"scale paper has the networks themselves"}


def test_supervised_rows_come_after_the_run_that_ranks_their_patches() -> None:
    first, last = plan_of("tableD", seeds=3).stages
    predictors = [task for task in first if task.kind == "pretrain"]
    assert [task.run_name for task in predictors] == ["hpm"] * 3
    assert [task.run.seed for task in predictors] == [0, 1, 2]
    assert all(task.measures == () for task in predictors)  # Table D has no column for them
    assert {task.keep for task in first if task.kind == "half"} == {"random", "all"}
    assert {task.keep for task in last} == {"easiest", "hardest"}
    assert len(last) == 6


def test_visual_tokens_are_trained_once_for_all_seeds() -> None:
    plan = plan_of("tableB", seeds=2, tokenizer=None)
    assert [task.kind for task in plan.stages[0]] == ["tokenizer"]
    assert all(task.kind == "pretrain" for task in plan.stages[1])


def test_measurements_by_table_and_scale() -> None:
    assert tasks(plan_of("table1", weights={}))["hpm"].measures == ("finetune", "linear", "knn")
    assert tasks(plan_of("table2", scale="paper"))["hpm"].measures == ("finetune",)
    assert tasks(plan_of("table2", scale="cpu"))["hpm"].measures == ("knn", "linear")
    assert tasks(plan_of("table2", scale="cpu", measures=("finetune",)))["hpm"].measures == ("finetune",)
    assert tasks(plan_of("table5", weights={}))["hpm"].measures == ("detect", "segment", "knn", "linear")
    both = tasks(plan_of("table5", "tableS4", scale="paper", weights={}))["hpm"].measures
    assert set(both) == {"detect", "segment", "speedup", "finetune", "linear", "knn"}


def test_speedup_is_measured_once() -> None:
    plan = plan_of("tableS4", seeds=2)
    measured = [task.seed for stage in plan.stages for task in stage if "speedup" in task.measures]
    assert set(measured) == {0}


def test_methods_of_others_are_cited_and_not_run() -> None:
    plan = plan_of("table6", "table7")
    cited = [row for (_, row), reason in plan.reasons.items() if "cited" in reason]
    assert cited == [
        "MoCo v3, 600 epochs",
        "DINO, 1600 epochs",
        "BootMAE, 800 epochs",
        "supervised",
        "MoCo v3",
        "SemMAE",
    ]


def test_larger_encoders_are_run_where_the_paper_has_a_figure() -> None:
    plan = plan_of("table6")
    assert plan.runs["table6", "HPM, 800 epochs", True] == "hpm-large-length_4"
    assert ("table6", "SimMIM, 800 epochs", True) not in plan.runs
    assert {task.large for task in tasks(plan).values() if task.kind == "scratch"} == {True, False}


def test_downstream_columns_without_data_have_a_reason() -> None:
    plan = plan_of("table7", segment=None, measures=("segment_160k",))
    assert plan.reasons["table7", "HPM"] == "segment_160k needs --segment_train, --segment_val"
    assert not plan.stages
