"""Live view of a run on real terminals: the screen that is left, names, narrow and changing screens, ways to end."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.terminal import Terminal

PROGRAM = str(Path(__file__).with_name("live_run.py"))
ESCAPED = r"cl\x1b[31mass [red]x[/red] \"quoted\" 'n' größe :smile: \x07end".replace('\\"', '"')
VIEW = """\
done  FOLDER
BAR 100 %
step 40 of 40   320 images/s   0:00 elapsed

loss                      1.6000         1.9500 at first
reconstruction loss       0.5000
loss predictor            62.5 %  good   of pairs ranked right
  rank correlation          0.25  good
hard share (alpha)          50 %
  their loss / others'      1.50  good   hard ones are mined

measured at step 20
loss, fixed masks         1.0000  good   best trivial predictor 1.5000
k-NN                      37.5 %  good   12.5 % at first

learned so far        barely - the loss falls, and nothing else has happened so
                      far

last of 3 warnings    the last warning
"""


def finished(tmp_path: Path, columns: int = 80, lines: int = 24, **environment: str) -> Terminal:
    terminal = Terminal([PROGRAM, str(tmp_path), "fast"], columns, lines, environment)
    terminal.read()
    assert terminal.process.returncode == 0
    return terminal


def same_clock(text: str) -> str:
    return re.sub(r"\d:\d\d elapsed", "0:00 elapsed", text)


def test_the_last_view_stays_and_nothing_else_of_it(tmp_path: Path) -> None:
    terminal = finished(tmp_path)
    view = VIEW.replace("FOLDER", str(tmp_path)).replace("BAR", "━" * 73)
    text = same_clock(terminal.history)
    assert view in text
    assert text.count("reconstruction loss") == text.count("━ ") == text.count("learned so far") == 1
    assert "training" not in text
    above = text[: text.index("done  ")]
    for line in ("warning: said before the folder is there", "a library's warning", "a library's error"):
        assert above.count(line) >= 1
    assert "printed to stderr" in above
    assert text.rstrip().endswith("end"), "the result is below the view"
    assert not terminal.cursor_hidden


def test_names_are_text(tmp_path: Path) -> None:
    terminal = finished(tmp_path, columns=200)
    assert terminal.history.count(ESCAPED) == 3
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.count(ESCAPED) == 3
    assert "\x1b" not in log


def test_the_log_holds_every_line(tmp_path: Path) -> None:
    finished(tmp_path)
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    stamped = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", line)]
    said = [line.split(" ", 3)[3] for line in stamped]
    assert said[0].startswith("begun with hardpatch ")
    assert said[0].endswith(f": hardpatch pretrain --out {tmp_path}")
    assert said[1] == "said before the folder is there"
    assert sum(line.startswith("step ") for line in said) == 10
    assert said[-2:] == ["the last warning", f"{tmp_path}: 40 steps done, {ESCAPED}"]
    assert any(line.endswith("UserWarning: a library's warning") for line in said)
    assert "a library's error" in said
    finished(tmp_path)
    again = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert again[: len(lines)] == lines
    assert " INFO resumed with hardpatch " in again[len(lines)]


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_widths(columns: int, tmp_path: Path) -> None:
    text = finished(tmp_path, columns).history
    view = text[text.index("done  ") :]
    assert "step 40 of 40" in view
    assert "loss predictor            62.5 %  good" in view
    assert "last of 3 warnings" in view
    assert view.count("loss predictor") == 1
    assert max(map(len, view.splitlines())) <= columns


def test_a_low_terminal_keeps_what_matters(tmp_path: Path) -> None:
    text = finished(tmp_path, lines=12).history
    view = text[text.index("done  ") :].splitlines()[:12]  # below them stands the result
    assert view[2].startswith("step 40 of 40")
    assert view[3].startswith("loss ")
    assert view[10].startswith("last of 3 warnings")
    assert "k-NN" not in "".join(view)


def test_a_terminal_that_becomes_narrow(tmp_path: Path) -> None:
    terminal = Terminal([PROGRAM, str(tmp_path), "slow"])
    terminal.read(lambda text: "step 7 of 40" in text)
    terminal.resize(50, 24)
    text = terminal.read(lambda text: "step 16 of 40" in text)
    assert text.count("reconstruction loss") == text.count("step ") - text.count("at step") == 1
    terminal.process.kill()


def test_dumb_terminals_get_lines(tmp_path: Path) -> None:
    terminal = finished(tmp_path, TERM="dumb")
    assert b"\x1b" not in terminal.raw
    assert "step 40/40  epoch 4.00  loss 1.6000" in terminal.history


def test_no_color(tmp_path: Path) -> None:
    terminal = finished(tmp_path, NO_COLOR="1")
    assert "good" in terminal.text
    assert not re.search(rb"\x1b\[[0-9;]*(3[0-7]|9[0-7])m", terminal.raw)


def test_a_killed_run_leaves_the_cursor(tmp_path: Path) -> None:
    terminal = Terminal([PROGRAM, str(tmp_path), "kill"])
    terminal.read(lambda text: "stopping after this step" in text)
    terminal.process.send_signal(signal.SIGKILL)
    terminal.read()
    assert not terminal.cursor_hidden


def test_a_terminal_that_goes_away(tmp_path: Path) -> None:
    program = f"import signal, runpy, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = {[PROGRAM]!r} + "
    program += f"[{str(tmp_path)!r}, 'fast']; sys.path.insert(0, {os.getcwd()!r}); "
    terminal = Terminal(["-c", f"{program}runpy.run_path({PROGRAM!r}, run_name='__main__')"])
    terminal.read(lambda text: "step 3 of 40" in text or "step 10 of 40" in text)
    os.close(terminal.control)
    assert terminal.process.wait(60) == 0
    assert "40 steps done" in (tmp_path / "log.txt").read_text(encoding="utf-8")
