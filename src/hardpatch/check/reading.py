"""Settings of `pretrain` that say how images are read, for the verbs that look at a set before it."""

import json
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from hardpatch.configuration import config
from hardpatch.configuration.data_section import READING, DataConfig
from hardpatch.data.bands import as_read
from hardpatch.data.names import listed
from hardpatch.data.reading import Reading
from hardpatch.data.sources import OpenedSource, Paths, open_images
from hardpatch.errors import UserError, did_you_mean
from hardpatch.pretrain.images import initial_reading


class ReadingSettings(NamedTuple):
    """Settings that were given, and what they mean before an image is seen."""

    data: DataConfig
    initial: Reading
    given: list[str]
    """arguments of ``hardpatch pretrain``, those of the channels left out"""

    def open(self, path: Paths) -> OpenedSource:
        """Open one path of images, or several, as a training on them does."""
        return as_read(open_images(listed(path), self.data.columns), self.initial)


def reading_settings(values: Mapping[str, Any]) -> ReadingSettings:
    """Check settings of :data:`~hardpatch.configuration.data_section.READING`, text or plain values; None is not given.

    Raises:
        UserError: names the first that is wrong.
    """
    for name in values:
        if name not in READING:
            hint = did_you_mean(name, READING) or f"; expected one of {', '.join(READING)}"
            raise UserError(f"unknown setting {name!r}{hint}")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    texts = {name: text for name, text in texts.items() if values[name] is not None}
    run = config.build({"epochs": 1}, [f"--data.{name}={text}" for name, text in texts.items()])
    given = [shlex.quote(f"--data.{name}={text}") for name, text in texts.items() if name != "channels"]
    return ReadingSettings(run.data, initial_reading(run), given)
