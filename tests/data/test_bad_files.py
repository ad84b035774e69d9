from pathlib import Path

import pytest

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from tests.data.small import write_png


def test_bad_files_are_counted_and_logged_once() -> None:
    lines: list[str] = []
    bad = BadFiles(total=100, max_bad_fraction=0.02, log=lines.append)
    bad.update(["a.jpg: truncated"])
    bad.update(["a.jpg: truncated", "b.jpg: empty file"])
    bad.update([])
    assert len(bad) == 2
    assert lines == ["cannot decode a.jpg: truncated", "cannot decode b.jpg: empty file"]


def test_files_that_cannot_be_used_for_other_reasons() -> None:
    lines: list[str] = []
    bad = BadFiles(4, 0.3, log=lines.append, verb="use")
    bad.update(["a.jpg: No such file or directory"])
    assert lines == ["cannot use a.jpg: No such file or directory"]
    with pytest.raises(UserError, match=r"2 of 4 images \(50.00%\) cannot be used and at most 30.00% may be"):
        bad.update(["b.jpg: another size"])


def test_too_many_bad_files_stop_the_run_with_one_line() -> None:
    bad = BadFiles(total=100, max_bad_fraction=0.02, log=lambda line: None)
    bad.update(["a.jpg: x", "b.jpg: x"])
    with pytest.raises(UserError) as caught:
        bad.update(["c.jpg: x", "d.jpg: y"])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("4 of 100", "4.00%", "2.00%", "c.jpg", "d.jpg: y", "raise --data.max_bad_fraction to allow more"):
        assert part in message


def test_limits_of_zero_and_one(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError):
        BadFiles(10, 0.0).update(["a: x"])
    BadFiles(2, 1.0).update(["a: x", "b: x"])
    assert [record.name for record in caplog.records] == ["hardpatch"] * 3


def test_the_list_of_a_resumed_run_has_one_line_for_each_file(tmp_path: Path) -> None:
    entries = ["a.jpg: broken", "line\nbreak\x85.jpg: broken"]
    for _ in range(2):  # the second call is of the resumed run
        bad = BadFiles(10, 0.5, log=lambda line: None)
        bad.keep_in(tmp_path / "undecodable.txt")
        bad.update(entries)
        assert len(bad) == 2
    assert (tmp_path / "undecodable.txt").read_text() == "a.jpg: broken\nline\\nbreak\\x85.jpg: broken\n"


def test_a_class_that_loses_its_last_image_is_named(tmp_path: Path) -> None:
    for name in ("a: cat/1.png", "a: cat/2.png", "dog/3.png"):
        write_png(tmp_path / name)
    source, lines = open_source(tmp_path), list[str]()
    bad = BadFiles(3, 1.0, log=lines.append, source=source)
    bad.update([f"{source.name(0)}: broken: at byte 3"])
    assert len(lines) == 1
    bad.update([f"{source.name(0)}: broken: at byte 3", f"{source.name(1)}: empty file"])
    assert lines[2:] == ["class 'a: cat' has no image that can be decoded"]
