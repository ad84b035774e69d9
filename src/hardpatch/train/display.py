"""Choice of what a training shows on the terminal."""

import logging
from typing import Literal

from hardpatch.train.live import LiveLog, LiveProgress
from hardpatch.train.log import show_log
from hardpatch.train.progress import JsonLog, JsonProgress, PlainProgress, Progress, Silent, live_console

Display = Literal["auto", "plain", "quiet", "json"]


def open_display(display: Display = "auto") -> Progress:
    """Return the display of a training, and let it show the log, too.

    Args:
        display: auto is a live view on a terminal and plain elsewhere; plain is lines on stderr; quiet is warnings
            only; json is one JSON object a line on stdout.
    """
    console = live_console() if display == "auto" else None
    if console is not None:
        progress = LiveProgress(console)
        show_log(LiveLog(progress))
        return progress
    if display == "json":
        show_log(JsonLog())
        return JsonProgress()
    show_log(level=logging.WARNING if display == "quiet" else logging.INFO)
    return Silent() if display == "quiet" else PlainProgress()
