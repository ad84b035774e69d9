import json
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hardpatch.data.reading import RGB as RGB_READING
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from hardpatch.measure.difficulty import Predict
from hardpatch.measure.score import ScoreResult, score
from hardpatch.measure.score_files import NO_PREDICTOR
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.methods.teacher import Teacher
from hardpatch.models.decoder import Decoder
from tests.measure.brightness_model import BrightnessModel, brightness_model, gray_patches, left_half, write_pictures


@pytest.fixture(scope="module")
def model() -> HPM:
    """Build a small HPM with random weights."""
    torch.manual_seed(0)
    host = MAE(
        image_size=(32, 32),
        patch_size=4,
        width=16,
        depth=1,
        heads=2,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        normalize_pixels=True,
    )
    return HPM(host, Decoder(width=16, depth=1, heads=2, outputs=4)).eval()


class First:
    """Source of the first images of another source, with its masks."""

    skipped = ()

    def __init__(self, source: Any, number: int) -> None:
        self.source, self.number, self.classes = source, number, source.classes

    def __len__(self) -> int:
        return self.number

    def name(self, i: int) -> str:
        return self.source.name(i)

    def image(self, i: int, reading: Reading = RGB_READING) -> np.ndarray:
        return self.source.image(i, reading)

    def encoded(self, i: int) -> bytes | None:
        return self.source.encoded(i)

    def label(self, i: int) -> int | None:
        return self.source.label(i)

    def mask(self, i: int) -> np.ndarray:
        return self.source.mask(i)


def rows_of(result: ScoreResult) -> list[dict[str, Any]]:
    return pq.read_table(result.table).to_pylist()


def score_pictures(folder: Path, images: dict[str, np.ndarray], *, sign: float = 1.0, **options: Any) -> ScoreResult:
    """Score images with the brightness model; ``sign`` is that of the teacher's prediction."""
    source = open_source(write_pictures(folder / "in", images))
    return score(brightness_model(), brightness_model(sign), source, out=folder / "out", **{"pictures": 0, **options})


def bright_where(mask: np.ndarray) -> np.ndarray:
    """Draw a picture that is white on the object and black elsewhere."""
    return (mask * 255)[..., None].repeat(3, axis=-1)


def test_a_right_and_a_wrong_prediction(tmp_path: Path) -> None:
    pictures = {"a.png": gray_patches(), "b.png": gray_patches(seed=1)}
    right = score_pictures(tmp_path, pictures)
    assert right.spearman == pytest.approx(1.0)
    assert right.auc is right.true_loss_auc is None
    wrong = score_pictures(tmp_path, pictures, sign=-1.0)
    assert wrong.spearman == pytest.approx(-1.0)
    first = rows_of(wrong)[0]
    grays = gray_patches()[::4, ::4, 0].ravel() / 255
    assert first["path"].endswith("a.png")
    assert (first["rows"], first["columns"]) == (4, 4)
    np.testing.assert_allclose(first["difficulty"], -grays, rtol=1e-5)
    np.testing.assert_allclose(first["true_loss"], grays**2, rtol=1e-5)
    assert first["mean_difficulty"] == pytest.approx(-grays.mean())
    assert first["mean_true_loss"] == pytest.approx((grays**2).mean())
    assert first["spearman"] == pytest.approx(-1.0)


def test_the_students_prediction_of_masked_patches(tmp_path: Path) -> None:
    source = open_source(write_pictures(tmp_path / "in", {"a.png": gray_patches(), "b.png": gray_patches(seed=1)}))
    no_teacher = cast(HPM, None)  # never called
    result = score(brightness_model(), no_teacher, source, out=tmp_path / "out", predict="masked", pictures=1)
    assert result.spearman == pytest.approx(-1.0)  # the student predicts the negative brightness
    np.testing.assert_allclose(rows_of(result)[0]["difficulty"], gray_patches()[::4, ::4, 0].ravel() / -255, rtol=1e-5)


def test_a_uniform_picture_has_no_rank_correlation(tmp_path: Path) -> None:
    result = score_pictures(tmp_path, {"a.png": np.zeros((16, 16, 3), np.uint8), "b.png": gray_patches()})
    assert [row["spearman"] for row in rows_of(result)] == [None, pytest.approx(1.0)]
    assert result.spearman == pytest.approx(1.0)


def test_the_hardest_patches_are_masked_for_the_reconstruction(tmp_path: Path) -> None:
    model = BrightnessModel()
    source = open_source(write_pictures(tmp_path / "in", {"a.png": gray_patches()}))
    score(cast(HPM, model), cast(HPM, model), source, out=tmp_path, mask_ratio=0.6, pictures=1)
    darkest = torch.tensor(gray_patches()[::4, ::4, 0].ravel().astype(int)).argsort()[:6]  # int(16 * 0.4) stay visible
    hidden = sorted(set(range(16)) - set(darkest.tolist()))
    assert model.masks[-1].tolist() == [hidden]
    assert all(mask.shape == (1, 10) for mask in model.masks)


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (48, 32), (40, 40)])
def test_masks_are_resized_and_cropped_like_their_images(tmp_path: Path, size: tuple[int, int]) -> None:
    mask = left_half(size)
    masks = write_pictures(tmp_path / "masks", {"deep/a.png": mask})
    result = score_pictures(tmp_path, {"a.jpg": bright_where(mask)}, masks=masks)
    assert result.auc == result.true_loss_auc == 1.0
    inverse = score_pictures(tmp_path, {"a.jpg": bright_where(mask)}, sign=-1.0, masks=masks)
    assert (inverse.auc, inverse.true_loss_auc) == (0.0, 1.0)


def test_an_object_outside_the_crop_has_no_auc(tmp_path: Path) -> None:
    edge = np.zeros((16, 32), dtype=np.uint8)
    edge[:, :8] = 255
    pictures = {"a.png": np.zeros((16, 32, 3), np.uint8), "b.png": bright_where(left_half())}
    masks = write_pictures(tmp_path / "masks", {"a.png": edge, "b.png": left_half()})
    result = score_pictures(tmp_path, pictures, masks=masks)
    assert [row["auc"] for row in rows_of(result)] == [None, 1.0]
    assert result.auc == 1.0


def test_demo_masks_pictures_and_independence_of_the_batch_size(tmp_path: Path, model: HPM) -> None:
    source = cast(Source, First(open_source("demo:test"), 11))
    calls: list[tuple[int, int | None]] = []
    whole = score(
        model,
        Teacher(model).network,
        source,
        out=tmp_path / "a",
        pictures=3,
        batch_size=5,
        progress=lambda done, total: calls.append((done, total)),
    )
    single = score(model, model, source, out=tmp_path / "b", pictures=0, batch_size=1)
    assert calls == [(5, 11), (10, 11), (11, 11)]
    assert (whole.images, len(whole.pictures), whole.bad) == (11, 3, ())
    assert [path.name for path in whole.pictures] == ["00000-00000.png", "00005-00005.png", "00010-00010.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        *[path.name for path in whole.pictures],
        "README.md",
        "contact_sheet.png",
        "scores.parquet",
    ]
    assert (single.pictures, single.contact_sheet) == ((), None)
    for one, other in zip(rows_of(whole), rows_of(single), strict=True):
        assert one.pop("path") == other.pop("path")
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=1e-4, abs=1e-5), key
    rows = rows_of(whole)
    assert len(rows) == 11
    for key in ("spearman", "auc", "true_loss_auc"):
        assert getattr(whole, key) == pytest.approx(np.mean([row[key] for row in rows]))
    assert json.loads(json.dumps(whole.to_dict()))["table"] == str(whole.table)


def test_the_seed_determines_the_masks(tmp_path: Path, model: HPM) -> None:
    source = cast(Source, First(open_source("demo:test"), 2))
    tables = [rows_of(score(model, model, source, out=tmp_path, pictures=0, seed=seed, draws=2)) for seed in (0, 0, 1)]
    assert tables[0] == tables[1]
    assert tables[0][0]["true_loss"] != tables[2][0]["true_loss"]
    assert tables[0][0]["difficulty"] == tables[2][0]["difficulty"]


def test_broken_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").write_bytes(b"not a picture")
    result = score_pictures(tmp_path, {"a.png": gray_patches(), "c.png": gray_patches()}, pictures=32)
    assert result.images == len(result.pictures) == 2
    assert [path.name for path in result.pictures] == ["00000-a.png", "00002-c.png"]
    assert len(result.bad) == 1
    assert "b.png" in result.bad[0]


def test_file_names_with_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"a b\xff$1$_{.png")
    folder = write_pictures(tmp_path / "in", {"plain.png": gray_patches()})
    try:
        (folder / "plain.png").rename(folder / name)
    except OSError:
        pytest.skip("this file system takes Unicode only")
    result = score(brightness_model(), brightness_model(), open_source(folder), out=tmp_path / "out")
    assert [path.name for path in result.pictures] == ["00000-a_b_xff_1___.png"]
    assert rows_of(result)[0]["path"].endswith("a b\\xff$1$_{.png")


def test_a_missing_mask_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match=r"a\.png .*got no such file"):
        score_pictures(tmp_path, {"a.png": gray_patches()}, masks=tmp_path / "masks")
    assert not (tmp_path / "out").exists()


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"^masks: expected a readable picture, got .*a\.png"):
        score_pictures(tmp_path, {"a.png": gray_patches()}, masks=tmp_path / "masks")


@pytest.mark.parametrize("predict", ["whole", "masked"])
def test_the_true_loss_of_a_model_without_predictor(tmp_path: Path, predict: Predict) -> None:
    pictures = {"a.png": bright_where(left_half()), "b.png": gray_patches()}
    source = open_source(write_pictures(tmp_path / "in", pictures))
    masks = write_pictures(tmp_path / "masks", dict.fromkeys(pictures, left_half()))
    plain, out = brightness_model(has_predictor=False), tmp_path / "out"
    result = score(plain, plain, source, out=out, masks=masks, predict=predict, draws=3, pictures=1)
    # It reconstructs black, so the loss of a patch is its squared brightness.
    losses = [left_half()[::4, ::4].ravel().astype(float), (gray_patches()[::4, ::4, 0].ravel() / 255) ** 2]
    for row, loss in zip(rows_of(result), losses, strict=True):
        assert list(row) == ["path", "mean_true_loss", "true_loss_auc", "true_loss", "rows", "columns"]
        np.testing.assert_allclose(row["true_loss"], loss, rtol=1e-5)
        assert row["mean_true_loss"] == pytest.approx(loss.mean())
    assert rows_of(result)[0]["true_loss_auc"] == 1.0
    # The same as with a predictor, to the bit.
    with_predictor = score(brightness_model(), brightness_model(), source, out=tmp_path / "b", masks=masks, draws=3)
    names = ("path", "true_loss", "true_loss_auc")
    assert [[row[name] for name in names] for row in rows_of(result)] == [
        [row[name] for name in names] for row in rows_of(with_predictor)
    ]
    assert (result.spearman, result.auc, result.true_loss_auc) == (None, None, with_predictor.true_loss_auc)
    content = result.to_dict()
    assert content["note"] == NO_PREDICTOR
    assert not {"spearman", "auc"} & content.keys()
    readme = (out / "README.md").read_text()
    assert NO_PREDICTOR in readme
    assert "| `true_loss` |" in readme
    assert "mean over 3 random masks" in readme
    assert "`difficulty`" not in readme
    assert "`difficulty`" in (tmp_path / "b" / "README.md").read_text()


def test_the_prediction_does_not_change_the_true_loss(tmp_path: Path, model: HPM) -> None:
    """The reconstruction loss of a host is the same with and without the predictor beside it."""
    plain, source = HPM(model.host, None).eval(), cast(Source, First(open_source("demo:test"), 3))
    tables = [rows_of(score(each, each, source, out=tmp_path / str(k))) for k, each in enumerate((model, plain))]
    assert [row["true_loss"] for row in tables[0]] == [row["true_loss"] for row in tables[1]]
    assert (tmp_path / "1" / "contact_sheet.png").is_file()


def test_too_few_draws(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^draws: expected at least 2, .*got 1"):
        score_pictures(tmp_path, {"a.png": gray_patches()}, draws=1)
    score_pictures(tmp_path, {"a.png": gray_patches()}, draws=2)


@pytest.mark.parametrize("mask_ratio", [0.0, 1.0, -1.0, 75.0])
def test_mask_ratio_out_of_range(tmp_path: Path, mask_ratio: float) -> None:
    with pytest.raises(UserError, match=r"^mask_ratio: "):
        score_pictures(tmp_path, {"a.png": gray_patches()}, mask_ratio=mask_ratio)


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"^out: expected a folder that can be written"):
        score_pictures(tmp_path, {"a.png": gray_patches()})


def test_a_diverged_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model: expected finite losses"):
        score_pictures(tmp_path, {"a.png": gray_patches()}, sign=torch.nan)
