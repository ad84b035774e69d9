"""Lines that are printed while work goes on."""

import os
import subprocess
import sys

import pytest

TWO_LINES = "from hardpatch.printable import say; [say('x' * 9, error={}) for _ in range(2)]; open({!r}, 'w').close()"


@pytest.mark.parametrize("error", [False, True])
def test_a_reader_that_is_gone_does_not_end_the_work(error: bool, tmp_path: os.PathLike[str]) -> None:
    done = os.path.join(tmp_path, "done")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", TWO_LINES.format(error, done)]
    process = subprocess.run(command, check=False, stdout=None if error else writer, stderr=writer if error else None)
    os.close(writer)
    assert process.returncode == 0
    assert os.path.exists(done)
