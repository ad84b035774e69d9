"""Programs in a terminal of their own, whose screen can be read."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence

import pyte


class Terminal:
    """Terminal in which a program of Python runs.

    Args:
        arguments: of ``python``.
        columns: of the screen.
        lines: of the screen.
        environment: variables that differ.
        piped_stdout: read stdout through a pipe, so that only stderr is the terminal.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        columns: int = 80,
        lines: int = 24,
        environment: dict[str, str] | None = None,
        *,
        piped_stdout: bool = False,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.control, terminal = pty.openpty()
        self.resize(columns, lines)
        inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=terminal,
            stdout=subprocess.PIPE if piped_stdout else terminal,
            stderr=terminal,
            env=inherited | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | (environment or {}),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal."""
        fcntl.ioctl(self.control, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def read(self, until: Callable[[str], bool] = lambda text: False, seconds: float = 120.0) -> str:
        """Read until the text of the screen is as wanted, or the program ends. Returns that text.

        Raises:
            TimeoutError: if neither happens in time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.control], [], [], 0.1)[0]:
                try:
                    data = os.read(self.control, 65536)
                except OSError:  # the program has ended
                    self.process.wait()
                    return self.text
                self.raw += data
                self.stream.feed(data)
            if until(self.text):
                return self.text
        raise TimeoutError(self.text)

    @property
    def text(self) -> str:
        """Lines of the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    @property
    def history(self) -> str:
        """Lines that scrolled out of the screen, and those on it."""
        columns = self.screen.columns
        above = ["".join(line[k].data for k in range(columns)).rstrip() for line in self.screen.history.top]
        return "\n".join([*above, self.text])

    @property
    def cursor_hidden(self) -> bool:
        """Return whether the program left no cursor."""
        return self.screen.cursor.hidden
