import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hardpatch.files import atomic_path, write_text_atomically


def test_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text_atomically(path, "a: ü\n")
    assert path.read_bytes() == b"a: \xc3\xbc\n"
    write_text_atomically(path, "b: 1\n", durable=True)
    assert path.read_text() == "b: 1\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_file_appears_only_when_the_block_ends(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "table.png"
    with atomic_path(path, durable=durable) as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")
        assert partial.suffix == ".png"  # writers may choose the format by the suffix
        partial.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_folder_replaces_an_empty_one_only(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "step_1"
    path.mkdir()

    def write(name: str) -> None:
        with atomic_path(path, durable=durable) as partial:
            (partial / "deeper").mkdir(parents=True)
            (partial / "deeper" / name).write_text("x")

    write("first")
    with pytest.raises(OSError, match="not empty"):
        write("second")
    assert [file.name for file in tmp_path.rglob("*")] == ["step_1", "deeper", "first"]


def test_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass


def test_several_files_appear_in_the_reverse_order_of_their_contexts(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "weights") as weights, atomic_path(tmp_path / "metrics") as metrics:
            weights.write_text("x")
            metrics.write_text("x")

    (tmp_path / "metrics").mkdir()  # cannot be replaced by a file
    with pytest.raises(IsADirectoryError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics"]
    (tmp_path / "metrics").rmdir()
    write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics", "weights"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from hardpatch.files import atomic_path

    with atomic_path(Path(sys.argv[1])) as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_removed_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write_text_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_concurrent_processes_write_to_paths_of_their_own(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt", concurrent=True) as partial:
        assert str(os.getpid()) in partial.name
        partial.write_text("x")
    assert (tmp_path / "a.txt").read_text() == "x"
