"""Any value of any setting is accepted by the checks or refused in one line that names it, never anything else."""

import math
from collections.abc import Callable, Mapping
from time import process_time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hardpatch.cli.settings import given_settings, training_parser
from hardpatch.configuration import config
from hardpatch.configuration.size import check_fits
from hardpatch.detect import settings as detect
from hardpatch.errors import UserError
from hardpatch.finetune import settings as finetune
from hardpatch.pretrain import recipes, tokenizer_settings
from hardpatch.segment import settings as segment
from hardpatch.train.settings import LoopSettings, changed, to_dict
from tests.test_yaml_text import BOMB

TEXTS = (
    *("nan", ".nan", "inf", ".inf", "-.inf", "-1", "0", "1", "2", "3", "1.5", "1e300", "-1e300", "1" + "0" * 30),
    *("9" * 4400, "0x10", "1_0", "1:30", "", " ", "null", "~", "true", "x", "\0", "\ud800", "é", "--", "-", "=", "a=b"),
    *("[]", "{}", "[1,1]", "[.nan,1]", "[0,0]", "[2,1]", "[1,2,3]", "[[1]]", "[[0,1],[1,0]]", "{a: 1}", "{1: 2}", "[1"),
    *("&a [*a]", BOMB, "[" * 5000, "{a: " * 5000, "!!int x", "!!python/object:os.system x", "2024-13-45", "2024-01-01"),
    *("*", "*_B04.tif", "@x", "`", "%", "\t", "a: b: c", "- a", "? a", "| a", "'", '"', "auto", "10", "0.5", "1024"),
)
VALUES: tuple[Any, ...] = (
    *(math.nan, math.inf, -math.inf, -1, 0, 1, 2, 3, 0.5, 1.5, 1e300, 10**30, 10**5000, -(10**30)),
    *(None, True, False, "", "x", "null", "nan", "1", b"x", 1 + 2j, [], {}, (), [1], [1, 1], [0, 0], [2, 1], [1, 2, 3]),
    *([math.nan, 1], [None], ["x", "y"], [[1]], {"a": 1}, {1: 2}, "[" * 5000, "&a [*a]", BOMB, range(3), object()),
)
NAMES = [
    f"{section}.{name}" if section else name
    for section, names in config.setting_names().items()
    for name in names
    if section or name not in config.setting_names()
]
DEMO = recipes.read("demo")
VERBS: Mapping[str, tuple[Mapping[str, LoopSettings], Callable[[Any], None]]] = {
    "finetune": (finetune.PRESETS, lambda run: finetune.check(run, 100)),
    "linear": (finetune.PROBES, lambda run: finetune.check(run, 100)),
    "segment": (segment.PRESETS, lambda run: segment.check(segment.resolved(run, 12), 16, 100)),
    "detect": (detect.PRESETS, detect.check),
    "tokenizer": (tokenizer_settings.PRESETS, tokenizer_settings.check),
}


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import what the first refusal would import, which is not its own time."""
    run = config.build(DEMO)
    check_fits(run)


def refused(action: Callable[[], Any], names: list[str]) -> bool:
    """Return whether an action is refused, and check that it is refused well and soon."""
    started = process_time()
    try:
        action()
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert process_time() - started < 3
    if message:
        assert any(name.split(".")[-1] in message for name in names), message
        assert "\n" not in message
        assert len(message) < 1000
    return bool(message)


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS), min_size=1, max_size=2))
@example({"method.frozen": "9" * 4400})
@settings(max_examples=40)
def test_pretrain(values: dict[str, str]) -> None:
    arguments, names = [f"--{name}={text}" for name, text in values.items()], list(values)
    if not refused(lambda: config.build(DEMO, arguments), names):
        run = config.build(DEMO, arguments)
        assert config.build(config.to_dict(run)) == run
        refused(lambda: check_fits(run), [*names, "memory"])
    refused(lambda: config.given(arguments), names)


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), min_size=1, max_size=2))
@settings(max_examples=40)
def test_a_file_of_settings(values: dict[str, Any]) -> None:
    nested: dict[str, Any] = {name: dict(part) if isinstance(part, dict) else part for name, part in DEMO.items()}
    for name, value in values.items():
        *section, key = name.split(".")
        (nested.setdefault(section[0], {}) if section else nested)[key] = value
    refused(lambda: config.build(nested), list(values))


@pytest.mark.parametrize("verb", VERBS)
@given(st.data())
@settings(max_examples=50)
def test_verbs_with_a_folder(verb: str, data: st.DataObject) -> None:
    presets, check = VERBS[verb]
    preset = presets[data.draw(st.sampled_from(sorted(presets)))]
    name, value = data.draw(st.sampled_from(sorted(to_dict(preset)))), data.draw(st.sampled_from(VALUES))
    run: list[LoopSettings] = []
    if not refused(lambda: run.append(changed(preset, {name: value})), [name]):
        refused(lambda: check(run[0]), [name])


@pytest.mark.parametrize("verb", VERBS)
@given(st.data())
@settings(max_examples=30)
def test_their_command_lines(verb: str, data: st.DataObject) -> None:
    presets, check = VERBS[verb]
    preset = next(iter(presets.values()))
    name, text = data.draw(st.sampled_from(sorted(to_dict(preset)))), data.draw(st.sampled_from(TEXTS))
    parser = training_parser(verb, "about", presets)

    def parse() -> None:
        options = parser.parse_args([f"--{name}={text}"])
        check(changed(preset, given_settings(options, presets)))

    refused(parse, [name, *(["val"] if text == "--" else [])])
