import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image as PILImage

from hardpatch.figures import (
    CELLS,
    COLOR_MAP,
    ScoreRow,
    channels_caption,
    contact_sheet,
    enlarge,
    heat_map,
    masked_image,
    patches_to_pixels,
    reconstruction,
    score_figure,
    to_rgb,
)
from hardpatch.methods import targets
from tests.sheets import watch


@pytest.mark.parametrize(
    ("channels", "text"),
    [
        (1, ""),
        (3, ""),
        (2, ", channel 0 of 2"),
        (13, ", channels 0, 1, 2 of 13"),
        ((3, 2, 1), ", channels 3, 2, 1"),
        ((7,), ", channel 7"),
        ((7, 5, 3, 1), ", channels 7, 5, 3 of 4"),
    ],
)
def test_pictures_name_the_channels_that_they_show(channels: int | tuple[int, ...], text: str) -> None:
    assert channels_caption(channels) == text


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def row(height: int = 8, width: int = 8, channels: int = 3, name: str = "a.png", factor: float = 1.0) -> ScoreRow:
    image, grid = picture(height, width, channels), (height // 4, width // 4)
    values = factor * np.linspace(-1, 1, grid[0] * grid[1], dtype=np.float32)
    return ScoreRow(name, image, values, values > -0.5, image, values**3, grid, "rank correlation -0.52", "AUC 0.71")


def test_to_rgb() -> None:
    assert to_rgb(picture(2, 3, 3)).tolist() == picture(2, 3, 3).tolist()
    assert (to_rgb(picture(2, 3, 1)) == picture(2, 3, 1)).all()
    for channels, used in ((1, 1), (2, 1), (3, 3), (13, 3)):
        image = picture(2, 3, channels)
        assert to_rgb(image).shape == (2, 3, 3)
        assert (to_rgb(image)[..., :used] == image[..., :used]).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60))
def test_enlarging_repeats_pixels_as_often_as_needed(height: int, width: int, least: int) -> None:
    image = picture(height, width, 1)
    large = enlarge(image, least)
    factor = large.shape[0] // height
    assert large.shape == (height * factor, width * factor, 1)
    assert least <= min(large.shape[:2]) < least + min(height, width)
    for y, x in ((0, 0), (factor - 1, factor - 1)):
        assert (large[y::factor, x::factor] == image).all()


def test_values_of_patches_are_repeated_row_by_row() -> None:
    assert patches_to_pixels(np.array([1, 2, 3, 4, 5, 6]), (2, 3), (2, 6)).tolist() == [
        [1, 1, 2, 2, 3, 3],
        [4, 4, 5, 5, 6, 6],
    ]


def test_heat_map_is_dark_for_low_and_bright_for_high_values() -> None:
    low, high = (np.array(colormaps[COLOR_MAP](end)[:3]) * 255 for end in (0.0, 1.0))
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    values = np.array([5.0, 7.0, 6.0, 6.0], dtype=np.float32)
    full = heat_map(black, values, (2, 2), opacity=1.0)
    assert (full[:2, :2] == low.round()).all()
    assert (full[:2, 2:] == high.round()).all()
    half = heat_map(black + np.uint8(100), values, (2, 2), opacity=0.5)
    assert (half[:2, 2:] == (high / 2 + 50).round()).all()


def test_heat_map_of_equal_values_has_one_color() -> None:
    image = np.zeros((4, 4, 1), dtype=np.uint8)
    assert len(np.unique(heat_map(image, np.full(4, 3.0, dtype=np.float32), (2, 2)).reshape(-1, 3), axis=0)) == 1


def test_masked_patches_are_gray() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    masked = masked_image(image, np.array([False, True, False, False]), (2, 2))
    expected = image.copy()
    expected[:2, 2:] = 128
    assert masked.dtype == np.uint8
    assert (masked == expected).all()
    assert image[0, 3] == 3  # the image itself is unchanged


@settings(deadline=None)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 5]),
    normalized=st.booleans(),
    seed=st.integers(0, 99),
)
def test_perfect_prediction_reconstructs_the_image(
    rows: int, columns: int, channels: int, normalized: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    image = picture(rows * 4, columns * 4, channels, seed)
    mean, std = generator.uniform(0, 1, channels).astype(np.float32), np.full(channels, 0.25, dtype=np.float32)
    pixels = (torch.tensor(image).permute(2, 0, 1).unsqueeze(0) / 255 - torch.tensor(mean).view(1, -1, 1, 1)) / 0.25
    mask = generator.random(rows * columns) < 0.6
    target = targets.pixels(pixels, 4, normalize=normalized)[0].numpy()
    reconstructed = reconstruction(image, target[mask], mask, 4, mean, std, normalized=normalized)
    assert reconstructed.dtype == np.uint8
    assert np.abs(reconstructed.astype(int) - image).max() == 0
    # any other prediction leaves the visible patches unchanged
    wrong = reconstruction(image, np.full_like(target[mask], 1e6), mask, 4, mean, std, normalized=normalized)
    masked = patches_to_pixels(mask, (rows, columns), image.shape[:2])
    assert (wrong[~masked] == image[~masked]).all()
    if not normalized:
        assert (wrong[masked] == 255).all()


def test_normalized_patch_gets_brightness_and_contrast_of_the_original() -> None:
    image = np.array([[[10], [30]], [[10], [30]]], dtype=np.uint8)
    flat, upside_down = np.zeros((1, 4), np.float32), np.array([[1.0, -1.0, 1.0, -1.0]], np.float32)
    all_masked, mean, std = np.array([True]), np.array([0.3], np.float32), np.array([0.2], np.float32)
    pictures = [reconstruction(image, p, all_masked, 2, mean, std, normalized=True) for p in (flat, upside_down)]
    assert pictures[0].ravel().tolist() == [20, 20, 20, 20]
    # the unbiased standard deviation of 10, 30, 10, 30 is 11.55
    assert pictures[1].ravel().tolist() == [32, 8, 32, 8]


def test_prediction_of_nan_is_black() -> None:
    mean, std = np.zeros(3, np.float32), np.ones(3, np.float32)
    prediction = np.full((1, 48), np.nan, np.float32)
    reconstructed = reconstruction(picture(4, 4), prediction, np.array([True]), 4, mean, std, normalized=False)
    assert (reconstructed == 0).all()


@pytest.mark.parametrize(
    "rows",
    [
        [row()],
        [row(32, 32, name="folder/" * 20 + "a_very_long_name_of_a_photograph.jpeg", factor=-12345.678)],
        [row(224, 224, factor=1e-7)],
        [row(8, 8, 1), row(8, 8, 13, name="n01440764/ILSVRC2012_VAL_00000293.JPEG"), row(name="")],
        [row(8, 24), row(8, 24, name="$not_math$ \\frac.png")],
        [row(24, 8)],
    ],
)
def test_no_text_overlaps_another_or_leaves_the_sheet(rows: list[ScoreRow], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = watch(monkeypatch)
    contact_sheet(rows, draws=10)
    assert len(drawn.pictures) == 7 * len(rows)  # five pictures and two bars
    assert len(drawn.texts) == 5 + 9 * len(rows)  # titles; captions, which may be empty, and two numbers at each bar
    assert f"{rows[0].true_loss.max():.2g}" in drawn.texts


def test_titles_name_the_masked_share_and_the_number_of_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, drawn = row(16, 16), watch(monkeypatch)
    assert shown.mask is not None
    score_figure(shown, draws=1)
    percent = round(100 * float(shown.mask.mean()))
    assert drawn.texts[2:5] == [f"hardest {percent} % masked", "reconstruction", "true loss, 1 random mask"]


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 3), (8, 24, 1), (24, 8, 5), (12, 20, 2)])
@pytest.mark.parametrize("lacking", [(), ("difficulty",), ("difficulty", "mask", "reconstruction")])
def test_the_pictures_are_where_the_file_says(
    height: int, width: int, channels: int, lacking: tuple[str, ...], tmp_path: Path
) -> None:
    nothing: dict[str, Any] = dict.fromkeys(lacking)
    rows = [row(height, width, channels, name=name)._replace(**nothing) for name in ("a", "b\x1b")]
    rows[1] = rows[1]._replace(image=255 - rows[0].image)
    contact_sheet(rows, draws=10).save(tmp_path / "sheet.png")
    with PILImage.open(tmp_path / "sheet.png") as file:
        sheet, cells = np.asarray(file).astype(int), json.loads(cast(Any, file).text[CELLS])
    assert cells["names"] == ["a", "b\\x1b"]
    for shown, (top, cell_height) in zip(rows, cells["rows"], strict=True):
        expected = {"picture": to_rgb(shown.image), "true_loss": heat_map(shown.image, shown.true_loss, shown.grid)}
        if shown.difficulty is not None:
            expected["difficulty"] = heat_map(shown.image, shown.difficulty, shown.grid)
        if shown.mask is not None:
            expected["masked"] = to_rgb(masked_image(shown.image, shown.mask, shown.grid))
        if shown.reconstruction is not None:
            expected["reconstruction"] = to_rgb(shown.reconstruction)
        assert set(cells["columns"]) == set(expected)
        for column, (left, cell_width) in cells["columns"].items():
            assert abs(cell_height / cell_width - height / width) < 1 / cell_width
            ys = [(2 * y + 1) * cell_height // (2 * height) for y in range(height)]
            xs = [(2 * x + 1) * cell_width // (2 * width) for x in range(width)]
            around = sheet[top - 1 : top + cell_height + 1, left - 1 : left + cell_width + 1]
            cell, picture = around[1:-1, 1:-1], expected[column]
            # Resizing mixes colors where two pixels meet: the middle of each has its color exactly, the edges of the
            # cell have those of the pixels there, and outside it is white.
            assert (cell[np.ix_(ys, xs)] == picture).all(), column
            assert (cell[0, xs] == picture[0]).all()
            assert (cell[-1, xs] == picture[-1]).all()
            assert (cell[ys, 0] == picture[:, 0]).all()
            assert (cell[ys, -1] == picture[:, -1]).all()
            assert (around[[0, -1]] == 255).all()
            assert (around[:, [0, -1]] == 255).all()


def test_sheet_without_rows() -> None:
    with pytest.raises(ValueError, match=r"^rows: expected at least one"):
        contact_sheet([], draws=10)
