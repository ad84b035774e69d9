"""Worker processes of the loader: they stop with the stream, can be spawned, and ignore Ctrl-C."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.multiprocessing

from hardpatch.data.loader import train_batches
from hardpatch.data.sources import Source, open_images
from tests.data.small import MANY_WORKERS, TRAIN, assert_same, child_processes, make_folder, take

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to count processes")
def test_closing_the_stream_stops_the_workers(source: Source) -> None:
    before = child_processes()
    stream = train_batches(source, TRAIN, batch_size=4, seed=0, workers=2)
    next(stream)
    assert len(child_processes() - before) >= 2
    stream.close()
    assert child_processes() - before == set()


@pytest.fixture
def spawning() -> Iterator[None]:
    torch.multiprocessing.set_start_method("spawn", force=True)
    yield
    torch.multiprocessing.set_start_method(None, force=True)


@pytest.mark.usefixtures("spawning")
def test_spawned_workers_give_the_same_batches(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", 8)
    pq.write_table(pa.table({"image": [Path(folder.name(i)).read_bytes() for i in range(8)]}), tmp_path / "a.parquet")
    source = open_images([tmp_path / "a.parquet", tmp_path / "images"])
    expected = take(train_batches(source, TRAIN, batch_size=5, seed=3), 4)
    assert_same(expected, take(train_batches(source, TRAIN, batch_size=5, seed=3, workers=1), 4))


INTERRUPTED = """
    import signal, sys
    from hardpatch.data.augment import TrainTransform
    from hardpatch.data.loader import train_batches
    from hardpatch.data.sources import open_source

    interrupts = []
    stream = train_batches(open_source(sys.argv[1]), TrainTransform((64, 64)), batch_size=64, seed=0, workers=2)
    next(stream)  # the workers run before the handler is set, as when they are spawned
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
    while not interrupts:
        next(stream)
        print("ready", flush=True)
    for _ in range(20):  # more than the workers have prepared
        next(stream)
    print("continued")
"""


def test_workers_ignore_an_interrupt_from_the_keyboard(tmp_path: Path, source: Source) -> None:
    (tmp_path / "run.py").write_text(textwrap.dedent(INTERRUPTED))
    images = str(Path(source.name(0)).parents[1])
    with subprocess.Popen(
        [sys.executable, "-W", MANY_WORKERS, str(tmp_path / "run.py"), images],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        output, errors = process.communicate(timeout=60)
    assert errors == ""
    assert output.endswith("continued\n")
    assert process.returncode == 0
