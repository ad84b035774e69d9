from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hardpatch.figures import (
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
def test_no_text_overlaps_another_or_leaves_the_figure(rows: list[ScoreRow]) -> None:
    figure = contact_sheet(rows, draws=10)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for axes in figure.axes for text in (axes.title, *axes.texts)]
    texts += [text for axes in figure.axes if axes.axison for text in axes.get_yticklabels()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    boxes += [("a picture", axes.get_window_extent(renderer)) for axes in figure.axes]
    assert len(boxes) > 5 + len(rows) * 10
    for (one, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), (one, other)
    for name, box in boxes:
        assert min(box.x0, box.y0) >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name


def test_titles_name_the_masked_share_and_the_number_of_masks() -> None:
    shown = row(16, 16)
    assert shown.mask is not None
    figure = score_figure(shown, draws=1)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    percent = round(100 * float(shown.mask.mean()))
    assert titles[2:] == [f"hardest {percent} % masked", "reconstruction", "true loss, 1 random mask"]
    assert len(score_figure(row(), draws=2).axes) == 7  # five pictures and two bars


def test_sheet_without_rows() -> None:
    with pytest.raises(ValueError, match=r"^rows: expected at least one"):
        contact_sheet([], draws=10)
