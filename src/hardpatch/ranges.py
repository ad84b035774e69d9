"""Ranges of numbers, each beside the setting that it is for; nothing here imports torch or NumPy.

A setting of a dataclass has its range in the metadata of its field (:func:`ranged`), an option of a verb that has no
dataclass in :data:`OPTIONS`. Every number is finite. The ceilings are far above what is useful: they refuse what would
hang or take all memory. Whether settings fit each other is checked by the verbs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from hardpatch.errors import UserError, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


CEILING = 1_000
"""Upper limits from here on are practical ones."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, with or without the limits themselves."""

    low: float
    high: float
    above: bool = False
    """leave out ``low``"""
    below: bool = False
    """leave out ``high``"""
    whole: bool = False
    """whole numbers only"""
    ordered: Literal["", "<", "<="] = ""
    """how the first of a pair of numbers compares with the second; empty for numbers that are no pair"""
    note: str = ""
    """other values that the setting takes"""

    def __contains__(self, number: Any) -> bool:
        """Return whether a value is a number in the range; NaN never is."""
        if not isinstance(number, int | float):
            return False
        if self.whole and (not isinstance(number, int) or isinstance(number, bool)):
            return False
        over = number > self.low if self.above else number >= self.low
        under = number < self.high if self.below else number <= self.high
        return bool(over and under)

    def words(self, *numbers: Any) -> str:
        """Return the range in words; a ceiling that only keeps out what is too much is said to who is above it."""
        low, high = _words(self.low), _words(self.high)
        if self.ordered:
            signs = ("<" if self.above else "<=", "<" if self.below else "<=")
            return f"{low} {signs[0]} lowest {self.ordered} highest {signs[1]} {high}"
        kind, first = "a whole number" if self.whole else "a number", "above" if self.above else "from"
        if self.high >= CEILING and not any(number > self.high for number in numbers):
            return f"{kind} {first} {low}"
        if self.above and self.below:
            return f"{kind} between {low} and {high}"
        return f"{kind} {first} {low}{', below' if self.below else ', up to' if self.above else ' to'} {high}"


def _words(number: float) -> str:
    """Return a limit as it is read best: 1,000 or 10^12 or 2^40."""
    for base in (2, 10) if abs(number) >= 1e9 else ():
        power = round(math.log(abs(number), base))
        if abs(number) == base**power:
            return f"{'-' if number < 0 else ''}{base}^{power}"
        if number == 2**power - 1:
            return f"2^{power} - 1"
    return f"{number:,}" if isinstance(number, int) or abs(number) >= 1e9 else f"{number:,g}"


HUGE = 10**12
"""Ceiling of numbers that only have to be finite."""
FRACTION = Range(0, 1)
BELOW_ONE = Range(0, 1, below=True)
SHARE = Range(0, 1, above=True)
"""A fraction of something that must not be empty."""
INSIDE = Range(0, 1, above=True, below=True)
POSITIVE = Range(0, HUGE, above=True)
NOT_NEGATIVE = Range(0, HUGE)
ANY = Range(-HUGE, HUGE)
RATE = Range(0, 1e30, above=True)
"""Learning rates; one that is far too high diverges, which the training itself reports."""
LEAST_RATE = Range(0, 1e30)
DECAY = Range(0, 1_000)
"""Weight decay."""
PASSES = Range(0, 1_000_000, above=True)
STEPS = Range(1, 2**40, whole=True)
SEED = Range(0, 2**63 - 1, whole=True)
BATCH = Range(1, 2**20, whole=True)
COUNT = Range(1, 1_000_000, whole=True)
COUNT_OR_NONE = Range(0, 1_000_000, whole=True)
BAD_STEPS = Range(0, 99, whole=True)
"""Steps of a window of 100."""
IMAGES = Range(1, HUGE, whole=True)
IMAGES_OR_NONE = Range(0, HUGE, whole=True)
DEVICES = Range(1, 1_024, whole=True, note=", or auto")
NODES = Range(1, 65_536, whole=True)
MINUTES = Range(0, 1_000_000, above=True)
WORKERS = Range(0, 1_024, whole=True, note=", or auto")
"""Processes that decode images."""
SIDE = Range(1, 16_384, whole=True)
"""Sides of images, in pixels."""
BLOCKS = Range(1, 1_000, whole=True)
"""Blocks of a Transformer."""
FREEZE = Range(0, 1_000, whole=True, note=", or encoder")
"""First blocks of a Transformer that are frozen."""
WIDTH = Range(1, 65_536, whole=True)
"""Widths of a Transformer and its attention heads."""
CHANNELS = Range(1, 4_096, whole=True)
"""Channels of convolutions."""
SHRINK = Range(1, HUGE, note=", or null for never")
PAIR_OF_SHARES = Range(0, 1, above=True, ordered="<=")
PAIR_OF_RATIOS = Range(0, 1_000, above=True, ordered="<=")


def ranged(default: Any, numbers: Range) -> Any:
    """Return a dataclass field with a default value and the range of its numbers; text and null stay free."""
    return field(default=default, metadata={"range": numbers})


def check_ranges(settings: "DataclassInstance", prefix: str = "") -> None:
    """Refuse numbers out of the range of their setting, empty texts, and null where a setting has no such value.

    Args:
        settings: a dataclass, or one of dataclasses.
        prefix: text before the names of its settings.

    Raises:
        UserError: names the first such setting.
    """
    hints = _hints(type(settings))
    for setting in fields(settings):
        value, name = getattr(settings, setting.name), f"{prefix}{setting.name}"
        if is_dataclass(value) and not isinstance(value, type):
            check_ranges(value, f"{name}.")
            continue
        check_text(name, value)
        if value is None and NoneType not in get_args(hints[setting.name]):  # which the parser lets pass
            raise UserError(f"{name}: expected a value, got null; leave it out for the default")
        if "range" in setting.metadata:
            check_range(name, value, setting.metadata["range"])


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def check_range(name: str, value: Any, numbers: Range) -> None:
    """Refuse a number, or a list with one, out of a range; text and None are free.

    Raises:
        UserError: names the setting, what was expected and what came.
    """
    several = isinstance(value, list | tuple)
    holds = (not several or len(value) > 0) and all(number in numbers for number in _numbers(value))
    if numbers.ordered and several and holds:
        pairs = value if all(isinstance(item, list | tuple) for item in value) else [value]
        holds = all(len(pair) == 2 and _ordered(pair[0], pair[1], numbers.ordered) for pair in pairs)
    if not holds:
        each = "for each number " if several and not numbers.ordered else ""
        expected = f"{each}{numbers.words(*_numbers(value))}{numbers.note}"
        raise UserError(f"{name}: expected {expected}, got {shown(value)}")


def check_text(name: str, value: Any) -> None:
    """Refuse an empty text, or a list with one.

    Raises:
        UserError: names the setting.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(text, str) and not text.strip() for text in texts):
        raise UserError(f"{name}: expected a value, got an empty text; is a shell variable unset?")


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _numbers(item)
    elif value is not None and not isinstance(value, str | bool):
        yield value


def _ordered(low: Any, high: Any, how: str) -> bool:
    try:
        return bool(low < high or (low == high and how == "<="))
    except TypeError:  # a list among the numbers
        return False


OPTIONS: Mapping[str, Range] = {
    "bandwidth": Range(0, 1_000_000, above=True),
    "base_lr": RATE,
    "batch_size": BATCH,
    "blocks": Range(-1_000, 1_000, whole=True),
    "checkpoint_minutes": NOT_NEGATIVE,
    "columns": Range(1, 1_000, whole=True),
    "count": COUNT,
    "crop_scale": PAIR_OF_SHARES,
    "decoder_heads": WIDTH,
    "draws": COUNT,
    "epochs": COUNT,
    "heads": WIDTH,
    "hours": Range(0, 1_000_000, above=True),
    "ignore": Range(-(2**31), 2**31 - 1, whole=True),
    "image_size": SIDE,
    "images_per_shard": Range(1, 1_000_000, whole=True),
    "images": IMAGES,
    "images_per_second": POSITIVE,
    "jobs": Range(1, 1_024, whole=True),
    "k": COUNT,
    "latency": Range(0, 60_000),
    "lr": RATE,
    "mask_ratio": INSIDE,
    "max_bad_fraction": FRACTION,
    "pictures": COUNT_OR_NONE,
    "port": Range(1, 65_535, whole=True),
    "probe_batch_size": Range(1, 2**31 - 1, whole=True),
    "repeats": COUNT,
    "seconds": Range(0, 1_000_000, above=True),
    "seed": SEED,
    "seeds": Range(1, 1_000, whole=True),
    "show": Range(0, 1_000_000, whole=True),
    "shrink_on_decode": SHRINK,
    "side": SIDE,
    "steps": COUNT,
    "temperature": Range(0, 1_000_000, above=True),
    "threads": Range(1, 1_024, whole=True),
    "threshold": Range(0, 2**31 - 1, whole=True),
    "top": COUNT,
    "trained_size": SIDE,
    "workers": WORKERS,
}
"""Ranges of the options that are no settings of a training, by name; those of a verb in Python are the same."""


def check_options(**values: Any) -> None:
    """Refuse arguments of a verb that are out of their range in :data:`OPTIONS`; None and text are free.

    Raises:
        UserError: names the first such option, as on the command line.
    """
    for name, value in values.items():
        check_range(f"--{name}", value, OPTIONS[name])
