"""Every number of every setting and option has a range, and the ranges are those that were thought about."""

import argparse
import contextlib
import math
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from hardpatch.choices import DeviceName
from hardpatch.cli import VERBS, main
from hardpatch.cli.arguments import PATHS, Parser
from hardpatch.configuration.sections import RunConfig
from hardpatch.detect.settings import DetectSettings
from hardpatch.errors import UserError
from hardpatch.finetune.settings import FinetuneSettings
from hardpatch.pretrain.tokenizer_settings import TokenizerSettings
from hardpatch.ranges import CEILING, HUGE, OPTIONS, Range, check_options, check_range, check_ranges
from hardpatch.segment.settings import SegmentSettings

SETTINGS = (RunConfig, FinetuneSettings, SegmentSettings, DetectSettings, TokenizerSettings)
NEGATIVE = {"fast.shared_blocks", "data.range", "data.mean", "init.mean"}
"""Settings that may be negative: blocks from the last one, and values of images."""


def numeric(hint: Any) -> bool:
    """Return whether a setting of this type can hold a number."""
    return hint in (int, float) or (hint not in (DeviceName,) and any(numeric(part) for part in get_args(hint)))


def settings_of(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """Yield name, type and field of each setting that can hold a number."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from settings_of(hints[field.name], f"{prefix}{field.name}.")
        elif numeric(hints[field.name]):
            yield f"{prefix}{field.name}", hints[field.name], field


ALL = [(kind.__name__, *setting) for kind in SETTINGS for setting in settings_of(kind)]


def test_the_walk_finds_the_settings() -> None:
    names = {name for _, name, _, _ in ALL}
    assert {"model.depth", "data.image_size", "optim.betas", "epochs", "crop", "anchor_scale", "vocabulary"} <= names
    assert not {"method.host", "train.compile", "device", "frozen", "photometric"} & names
    assert len(ALL) > 130


@pytest.mark.parametrize(("kind", "name", "hint", "field"), ALL, ids=[f"{kind}.{name}" for kind, name, _, _ in ALL])
def test_every_number_has_a_range(kind: str, name: str, hint: Any, field: Field[Any]) -> None:
    numbers = field.metadata.get("range")
    assert numbers is not None, f"{kind}.{name}: give it a range, see hardpatch.ranges"
    check_range(name, field.default, numbers)
    for value in (math.nan, math.inf, -math.inf, 10**40, 1e300, [math.nan], [1.0, math.inf]):
        with pytest.raises(UserError, match=rf"^{name}: expected "):
            check_range(name, value, numbers)
    assert (-1 in numbers) == (name in NEGATIVE), f"{kind}.{name}: list it in NEGATIVE if negative numbers have a sense"
    if float not in (hint, *get_args(hint)) and "float" not in str(hint):
        assert numbers.whole, f"{kind}.{name}: expected a range of whole numbers"


def test_a_setting_without_a_range_is_noticed() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class New:
        sharpness: float = 1.0

    ((name, hint, field),) = settings_of(New)
    with pytest.raises(AssertionError, match="give it a range"):
        test_every_number_has_a_range("New", name, hint, field)


def parsers(monkeypatch: pytest.MonkeyPatch) -> list[Parser]:
    """Build the parser of every verb by asking for its help."""
    built: list[Parser] = []
    init = Parser.__init__

    def record(self: Parser, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        built.append(self)

    monkeypatch.setattr(Parser, "__init__", record)
    lines = [[verb] for verb in VERBS] + [["linear", "--protocol", "paper"], ["bench", "data"], ["study", "fig2"]]
    for line in lines:
        with contextlib.suppress(SystemExit):
            main([*line, "--help"])
    return built


def test_every_option_of_every_verb_has_a_range(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = parsers(monkeypatch)
    capsys.readouterr()
    assert len(found) >= len(VERBS)
    for parser in found:
        for action in parser._actions:
            where = f"{parser.prog} {action.option_strings}"
            assert action.type not in (int, float) or action.choices, f"{where}: take number(...) for its type"
            if callable(action.type) and "parse" in getattr(action.type, "__qualname__", ""):
                for text in ("nan", "inf", "9" * 5000, "1e300", "x"):
                    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
                        action.type(text)
            if action.metavar in PATHS:
                with pytest.raises(UserError, match=r"expected a path, got an empty text; is a shell variable unset\?"):
                    parser._get_value(action, "")


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_refused_by_name(name: str) -> None:
    check_options(**{name: None})
    for value in (math.nan, math.inf, 10**40, [math.nan]):
        with pytest.raises(UserError, match=rf"^--{name}: expected .*, got "):
            check_options(**{name: value})


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (Range(0, 1), "a number from 0 to 1"),
        (Range(0, 1, above=True), "a number above 0, up to 1"),
        (Range(0, 1, above=True, below=True), "a number between 0 and 1"),
        (Range(1, 16_384, whole=True), "a whole number from 1"),
        (Range(0, HUGE), "a number from 0"),
        (Range(0, 1, above=True, ordered="<="), "0 < lowest <= highest <= 1"),
    ],
)
def test_words(numbers: Range, text: str) -> None:
    assert numbers.words(0) == text


def test_a_practical_ceiling_is_said_to_who_is_above_it() -> None:
    assert Range(1, 16_384, whole=True).words(10**9) == "a whole number from 1 to 16,384"
    assert Range(1, 2**40, whole=True).words(10**30) == "a whole number from 1 to 2^40"
    assert Range(0, 2**63 - 1, whole=True).words(2**63) == "a whole number from 0 to 2^63 - 1"
    assert Range(-HUGE, HUGE).words(math.inf) == "a number from -10^12 to 10^12"
    assert CEILING <= 1_000


def test_pairs_are_in_order_and_complete() -> None:
    pair = Range(0, 1, above=True, ordered="<=")
    check_range("x", (0.5, 0.5), pair)
    check_range("x", [[0.1, 0.2], [0.3, 0.4]], pair)
    for value in ((0.6, 0.5), (0.0, 0.5), (0.5,), (0.1, 0.2, 0.3), [], [[0.1, 0.2], []], [[0.1, 0.2], 0.3]):
        with pytest.raises(UserError, match="x: expected 0 < lowest <= highest <= 1, got"):
            check_range("x", value, pair)
    with pytest.raises(UserError, match="x: expected 0 <= lowest < highest <= 1, got"):
        check_range("x", [0.5, 0.5], Range(0, 1, ordered="<"))


def test_messages_stay_short() -> None:
    for value in ("9" * 5000, 10**5000, [1] * 5000):
        with pytest.raises(UserError) as caught:
            check_range("x", value if not isinstance(value, str) else [2.5] * 1000, Range(0, 0.5))
        assert len(str(caught.value)) < 300
    with pytest.raises(UserError, match="got a number of thousands of digits"):
        check_range("x", 10**5000, Range(0, 1))


def test_no_setting_takes_an_empty_text() -> None:
    from dataclasses import replace

    run = RunConfig(steps=1)
    for changed in (
        replace(run, data=replace(run.data, path="")),
        replace(run, data=replace(run.data, path=["a", " "])),
        replace(run, method=replace(run.method, tokenizer="")),
    ):
        with pytest.raises(UserError, match="expected a value, got an empty text"):
            check_ranges(changed)
