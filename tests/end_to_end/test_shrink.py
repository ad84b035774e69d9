"""hardpatch shrink: the same images in the same order, resized; no files remain after an error."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hardpatch.cli import main
from hardpatch.data import parquet
from hardpatch.data import shrink as shrink_module
from hardpatch.data.decode import decode, open_image
from hardpatch.data.shrink import shrink
from hardpatch.data.smaller_copy import shrink_image
from hardpatch.data.sources import open_source
from tests.data.small import MANY_WORKERS

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)

SIZES = [(300, 400), (512, 200), (64, 512), (20, 30), (40, 40), (500, 41)]


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as file:
        return np.array(file.convert("RGB"))


@pytest.fixture
def tree(tmp_path: Path, photograph: np.ndarray) -> Path:
    """Write 36 images of six sizes in three classes, JPEG and PNG, and three broken files."""
    for k in range(36):
        height, width = SIZES[k % len(SIZES)]
        path = tmp_path / "images" / f"class_{k % 3}" / f"{k:02d}.{'png' if k % 4 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[k : k + height, :width]).save(path)
    whole = (tmp_path / "images" / "class_1" / "01.jpg").read_bytes()
    for k, data in enumerate((b"", b"no picture", whole[: len(whole) // 2])):
        (tmp_path / "images" / f"class_{k}" / "20b.jpg").write_bytes(data)
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [0, 2])
def test_order_labels_and_sizes(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(shrink_module, "SHARD_BYTES", 30_000)  # several files
    monkeypatch.setattr(shrink_module, "GROUP_ROWS", 4)
    out = tmp_path / "small"
    assert (
        main(
            [
                "shrink",
                str(tree),
                "--side",
                "40",
                "--out",
                str(out),
                "--workers",
                str(workers),
                "--json",
                str(tmp_path / "result.json"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "36 images in " in printed.out
    assert "left out: 3" in printed.out
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["images"], result["left_out"]) == (36, {"not images": 0, "undecodable": 3})
    assert sum("20b.jpg" in line for line in printed.err.splitlines()) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert len(list(out.iterdir())) > 1
    before, after = open_source(tree), open_source(out)
    readable = [i for i in range(len(before)) if "20b" not in before.name(i)]
    assert after.classes == before.classes == ("class_0", "class_1", "class_2")
    assert len(after) == len(readable) == 36
    for k, i in enumerate(readable):
        assert after.label(k) == before.label(i)
        assert before.name(i) in after.name(k)
        old, new = before.image(i), after.image(k)
        if min(old.shape[:2]) <= 40:
            assert after.encoded(k) == before.encoded(i), "an image that is small enough is copied unchanged"
        else:
            zoom = 40 / min(old.shape[:2])
            assert min(new.shape[:2]) == 40
            assert new.shape[:2] == tuple(round(side * zoom) for side in old.shape[:2])
            expected = np.asarray(Image.fromarray(old).resize(new.shape[1::-1], Image.Resampling.BICUBIC))
            assert (
                np.abs(new.astype(int) - expected).mean() < 6
            )  # mostly in the colors, which are stored at half resolution
    for path in out.iterdir():
        metadata = pq.ParquetFile(path).metadata
        assert all(metadata.row_group(group).num_rows <= 4 for group in range(metadata.num_row_groups))


def test_large_files_are_read_at_random(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(open_source(tree), tmp_path / "small", 40)
    resident = open_source(tmp_path / "small")
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    on_disk = open_source(tmp_path / "small")
    for i in np.random.default_rng(0).integers(36, size=60).tolist():
        assert on_disk.encoded(i) == resident.encoded(i)


def test_huggingface_reads_the_features(tree: Path, tmp_path: Path) -> None:
    shrink(open_source(tree), tmp_path / "small", 40)
    table = pq.read_table(tmp_path / "small")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"names": ["class_0", "class_1", "class_2"], "_type": "ClassLabel"},
    }
    row = table.slice(0, 1).to_pylist()[0]
    assert set(row["image"]) == {"bytes", "path"}
    with Image.open(io.BytesIO(row["image"]["bytes"])) as file:
        assert min(file.size) == 40


def test_a_large_jpeg_is_decoded_at_a_smaller_scale(photograph: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photograph).save(buffer, "JPEG", quality=95)
    ours = shrink_image(open_image(buffer.getvalue()), 60).astype(int)
    whole = shrink_image(decode(buffer.getvalue()), 60).astype(int)
    assert ours.shape == whole.shape == (60, 60, 3)
    assert 0 < np.abs(ours - whole).mean() < 1.5


def test_mistakes_leave_no_files(
    fails: Callable[..., str], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_at_work(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        said, line = capsys.readouterr().err.splitlines()
        assert said.startswith("IMAGES: ")
        return line

    (tmp_path / "existing").mkdir()
    assert "--out: expected a folder that does not exist" in fails("shrink", tree, "--out", tmp_path / "existing")
    assert "--side: expected a whole number from 1, got 0" in fails("shrink", tree, "--side", "0", "--out", "x")
    assert "no such file" in fails("shrink", tmp_path / "nowhere", "--out", tmp_path / "x")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    broken = ["shrink", tmp_path / "broken.jpg", "--out", tmp_path / "x", "--workers", "0"]
    assert "none of the 1 images can be decoded" in fails_at_work(*broken)
    (tmp_path / "file").write_text("not a folder")
    assert "--out: cannot write" in fails_at_work("shrink", tree, "--workers", "0", "--out", tmp_path / "file" / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jpg", "existing", "file", "images"]


def test_an_interruption_leaves_no_files(tree: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(open_source(tree), tmp_path / "small", 40, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
