import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from hardpatch.figures import (
    COLOR_MAP,
    ScoreRow,
    _curve,
    contact_sheet,
    enlarge,
    heat_map,
    masked_image,
    reconstruction,
    score_figure,
    spread,
    to_rgb,
    training_curves,
)
from hardpatch.methods import targets


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def row(height: int = 8, width: int = 8, channels: int = 3, name: str = "a.png", factor: float = 1.0) -> ScoreRow:
    image, grid = picture(height, width, channels), (height // 4, width // 4)
    values = factor * np.linspace(-1, 1, grid[0] * grid[1], dtype=np.float32)
    return ScoreRow(name, image, values, values > -0.5, image, values**3, grid, "rank correlation -0.52", "AUC 0.71")


def test_to_rgb() -> None:
    assert to_rgb(picture(2, 3, 3)).tolist() == picture(2, 3, 3).tolist()
    assert (to_rgb(picture(2, 3, 1)) == picture(2, 3, 1)).all()
    for channels, kept in ((1, 1), (2, 1), (3, 3), (13, 3)):
        image = picture(2, 3, channels)
        assert to_rgb(image).shape == (2, 3, 3)
        assert (to_rgb(image)[..., :kept] == image[..., :kept]).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60))
def test_enlarging_repeats_pixels_just_as_often_as_it_must(height: int, width: int, least: int) -> None:
    image = picture(height, width, 1)
    large = enlarge(image, least)
    factor = large.shape[0] // height
    assert large.shape == (height * factor, width * factor, 1)
    assert least <= min(large.shape[:2]) < least + min(height, width)
    for y, x in ((0, 0), (factor - 1, factor - 1)):
        assert (large[y::factor, x::factor] == image).all()


def test_values_are_spread_row_by_row() -> None:
    assert spread(np.array([1, 2, 3, 4, 5, 6]), (2, 3), (2, 6)).tolist() == [[1, 1, 2, 2, 3, 3], [4, 4, 5, 5, 6, 6]]


def test_heat_map_is_dark_where_low_and_bright_where_high() -> None:
    low, high = (np.array(colormaps[COLOR_MAP](end)[:3]) * 255 for end in (0.0, 1.0))
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    values = np.array([5.0, 7.0, 6.0, 6.0], dtype=np.float32)
    full = heat_map(black, values, (2, 2), opacity=1.0)
    assert (full[:2, :2] == low.round()).all()
    assert (full[:2, 2:] == high.round()).all()
    half = heat_map(black + np.uint8(100), values, (2, 2), opacity=0.5)
    assert (half[:2, 2:] == (high / 2 + 50).round()).all()


def test_heat_map_of_equal_values_is_even() -> None:
    image = np.zeros((4, 4, 1), dtype=np.uint8)
    assert len(np.unique(heat_map(image, np.full(4, 3.0, dtype=np.float32), (2, 2)).reshape(-1, 3), axis=0)) == 1


def test_masked_patches_are_gray() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    masked = masked_image(image, np.array([False, True, False, False]), (2, 2))
    wanted = image.copy()
    wanted[:2, 2:] = 128
    assert masked.dtype == np.uint8
    assert (masked == wanted).all()
    assert image[0, 3] == 3  # not the picture itself


@settings(deadline=None)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 5]),
    normalized=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_perfect_prediction_gives_the_picture(
    rows: int, columns: int, channels: int, normalized: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    image = picture(rows * 4, columns * 4, channels, seed)
    mean, std = generator.uniform(0, 1, channels).astype(np.float32), np.full(channels, 0.25, dtype=np.float32)
    pixels = (torch.tensor(image).permute(2, 0, 1).unsqueeze(0) / 255 - torch.tensor(mean).view(1, -1, 1, 1)) / 0.25
    mask = generator.random(rows * columns) < 0.6
    target = targets.pixels(pixels, 4, normalize=normalized)[0].numpy()
    rebuilt = reconstruction(image, target[mask], mask, 4, mean, std, normalized=normalized)
    assert rebuilt.dtype == np.uint8
    assert np.abs(rebuilt.astype(int) - image).max() == 0
    # and any other prediction leaves the visible patches alone
    wild = reconstruction(image, np.full_like(target[mask], 1e6), mask, 4, mean, std, normalized=normalized)
    hidden = spread(mask, (rows, columns), image.shape[:2])
    assert (wild[~hidden] == image[~hidden]).all()
    if not normalized:
        assert (wild[hidden] == 255).all()


def test_a_normalized_patch_borrows_brightness_and_contrast() -> None:
    image = np.array([[[10], [30]], [[10], [30]]], dtype=np.uint8)
    flat, upside_down = np.zeros((1, 4), np.float32), np.array([[1.0, -1.0, 1.0, -1.0]], np.float32)
    everything, mean, std = np.array([True]), np.array([0.3], np.float32), np.array([0.2], np.float32)
    rebuilt = [reconstruction(image, p, everything, 2, mean, std, normalized=True) for p in (flat, upside_down)]
    assert rebuilt[0].ravel().tolist() == [20, 20, 20, 20]
    # the unbiased standard deviation of 10, 30, 10, 30 is 11.55
    assert rebuilt[1].ravel().tolist() == [32, 8, 32, 8]


def test_a_prediction_of_nothing_is_black() -> None:
    mean, std = np.zeros(3, np.float32), np.ones(3, np.float32)
    nothing = np.full((1, 48), np.nan, np.float32)
    rebuilt = reconstruction(picture(4, 4), nothing, np.array([True]), 4, mean, std, normalized=False)
    assert (rebuilt == 0).all()


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
    for (one, box), (other, its_box) in combinations(boxes, 2):
        assert not box.overlaps(its_box), (one, other)
    for name, box in boxes:
        assert min(box.x0, box.y0) >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name


def test_titles_say_how_much_was_masked_and_how_often() -> None:
    figure = score_figure(row(16, 16), draws=1)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    share = round(100 * float(row(16, 16).mask.mean()))
    assert titles[2:] == [f"hardest {share} % masked", "reconstruction", "true loss, 1 random mask"]
    assert len(score_figure(row(), draws=2).axes) == 7  # five pictures and two bars


def test_a_sheet_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"^rows: expected at least one"):
        contact_sheet([], draws=10)


METRICS: list[dict[str, Any]] = [
    {"epoch": 1, "step": 10, "loss": 2.0, "lr": 1e-5, "alpha": 0.0, "note": "text"},
    {"epoch": 2, "step": 20, "loss": None, "lr": 1e-4, "alpha": 0.25},
    {"epoch": 3, "step": 30, "loss": float("nan"), "pair_accuracy": 0.6, "knn_top1": 0.3},
    {"epoch": 4, "step": 40, "loss": 1.0, "predicting_loss": 0.6, "spearman": 0.2},
]


def test_a_curve_leaves_out_what_is_no_number() -> None:
    assert _curve(METRICS, "epoch", "loss") == ([1.0, 4.0], [2.0, 1.0])
    assert _curve(METRICS, "step", "alpha") == ([10.0, 20.0], [0.0, 0.25])
    assert _curve(METRICS, "step", "missing") == ([], [])


def test_curves_have_a_panel_for_what_was_measured(tmp_path: Path) -> None:
    some = training_curves(METRICS[:2], tmp_path / "new" / "some.png")
    everything = training_curves(METRICS, tmp_path / "all.png")
    without_epochs = training_curves([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], tmp_path / "one.png")
    assert some == tmp_path / "new" / "some.png"
    sizes = [imread(path).shape[:2] for path in (some, everything, without_epochs)]
    assert sizes[0][0] < sizes[1][0]  # three panels in one row, five in two
    assert sizes[2][1] * 3 == sizes[0][1]
    for path in (some, everything, without_epochs):
        assert imread(path)[..., :3].min() < 0.5  # not a blank page


def test_curves_of_a_file_of_metrics(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in METRICS)
    assert training_curves([json.loads(line) for line in lines.splitlines()], tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("metrics", [[], [{"epoch": 1, "unknown": 2.0}], [{"loss": 1.0}]])
def test_nothing_to_draw(tmp_path: Path, metrics: list[dict[str, float]]) -> None:
    with pytest.raises(ValueError, match=r"^metrics: expected rows with"):
        training_curves(metrics, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
