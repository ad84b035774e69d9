"""Names of choices stand once: in a type that the settings use, and in the dictionary that gives them a meaning."""

from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from hardpatch import choices
from hardpatch.configuration.hosts import HOSTS
from hardpatch.configuration.sections import RunConfig
from hardpatch.methods.losses import PREDICTING_LOSSES, RECONSTRUCTION_LOSSES
from hardpatch.methods.masking import STRATEGIES
from hardpatch.train.device import PRECISIONS


@pytest.mark.parametrize(
    ("names", "meanings"),
    [
        (choices.HostName, HOSTS),
        (choices.MaskName, STRATEGIES),
        (choices.PredictingLossName, PREDICTING_LOSSES),
        (choices.ReconstructionLossName, RECONSTRUCTION_LOSSES),
        (choices.SizeName, choices.SIZES),
    ],
)
def test_every_name_has_a_meaning(names: Any, meanings: dict[str, Any]) -> None:
    assert get_args(names) == tuple(meanings)


def test_precisions() -> None:
    assert get_args(choices.PrecisionName) == ("auto", *PRECISIONS)


def test_what_a_host_needs_is_what_its_class_says() -> None:
    from hardpatch.configuration import config
    from hardpatch.configuration.build import initial_model
    from hardpatch.pretrain import recipes

    sizes = ["--model.width=32", "--model.depth=1", "--model.heads=2", "--data.image_size=32", "--model.patch_size=8"]
    base = config.to_dict(config.build(recipes.read("demo"), [*sizes, "--ibot.local_size=16", "--ibot.outputs=8"]))
    for name, kind in HOSTS.items():
        model = initial_model(config.build({**base, "method": {**base["method"], "host": name}}))
        assert model.host.uses_teacher == kind.uses_teacher
        assert model.host.encoder.drop_masked == kind.drops_masked


def test_settings_use_the_types() -> None:
    sections = {name: section for name, section in get_type_hints(RunConfig).items() if is_dataclass(section)}
    hints = {name: get_type_hints(section) for name, section in sections.items()}
    assert hints["method"]["host"] == choices.HostName
    assert hints["method"]["mask"] == choices.MaskName
    assert hints["model"]["size"] == choices.SizeName
