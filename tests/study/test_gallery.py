import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

from hardpatch.errors import UserError
from hardpatch.evaluate.difficulty import RunModels
from hardpatch.figures import RED_IS_HIGH, shorten
from hardpatch.interchange.load import TrainingMasks
from hardpatch.study import gallery as module
from hardpatch.study.gallery import choose, draw_gallery
from hardpatch.study.gallery_picture import NAME_LENGTH, GalleryTuple, gallery_page, two_decimals
from hardpatch.study.gallery_result import NO_PREDICTED_LOSS, Gallery, GalleryResult
from tests.measure.brightness_model import brightness_model, gray_patches, left_half, write_pictures
from tests.sheets import watch

Draw = Callable[..., GalleryResult]


def models(sign: float = 1.0, *, has_predictor: bool = True) -> RunModels:
    """Return a run of the brightness model: its loss is the squared brightness, its teacher predicts the brightness."""
    model = brightness_model(sign, has_predictor=has_predictor)
    return RunModels(model, model, None, TrainingMasks(0.75, "whole"))


RUNS = {"right": models(), "wrong": models(-1.0), "plain": models(has_predictor=False)}


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draw figures of four pictures, ``a`` (left half white) to ``d``, from the brightness models."""
    pictures = {f"{name}.png": gray_patches(seed=seed) for seed, name in enumerate("bcd")}
    pictures["a.png"] = (left_half() * 255)[..., None].repeat(3, axis=-1)
    images = write_pictures(tmp_path / "in", pictures)
    write_pictures(tmp_path / "masks", dict.fromkeys(pictures, left_half()))

    def load(run: str, **_: object) -> RunModels:
        return RUNS[run]

    monkeypatch.setattr(module, "load_models", load)

    def call(figure: str, run: str, **options: Any) -> GalleryResult:
        defaults: dict[str, Any] = {"out": tmp_path / "out", "draws": 3, "workers": 0, "device": "cpu"}
        return draw_gallery(Gallery(figure, run, [str(images)], **(defaults | options)))

    return call


def read(result: GalleryResult) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((result.gallery.out / "result.json").read_text())
    return content


def test_true_and_predicted_losses_of_known_models(draw: Draw, tmp_path: Path) -> None:
    result = draw("fig2", "right", masks=tmp_path / "masks")
    assert result.panels == ("image", "true_loss", "predicted", "masked")
    content = read(result)
    half, gray = content["scores"][:2]
    assert half["path"].endswith("a.png")
    # Half of the patches are white: brightness 1 and loss 1; the others are black.
    assert (half["mean_difficulty"], half["mean_true_loss"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (half["auc"], half["true_loss_auc"], half["spearman"]) == (1.0, 1.0, pytest.approx(1.0))
    # 16 different grays, 0, 7, ..., 105 of 255.
    assert gray["mean_difficulty"] == pytest.approx(52.5 / 255)
    assert gray["mean_true_loss"] == pytest.approx(49 * 77.5 / 255**2)  # the mean of 0, 1, 4, ..., 225 is 77.5
    for name in ("auc", "true_loss_auc", "spearman"):
        assert content["mean"][name] == pytest.approx(np.mean([row[name] for row in content["scores"]]))
    assert content["mean"]["spearman"] == pytest.approx(1.0)
    assert content["images"] == {"shown": 4, "given": 4}
    assert sorted(path.name for path in result.gallery.out.iterdir()) == ["README.md", "fig2.png", "result.json"]
    readme = (result.gallery.out / "README.md").read_text()
    assert "mean over 3 random masks of 75% of the patches" in readme
    assert f"against the object masks | {content['mean']['auc']:.3f} |" in readme


def test_the_panels_of_a_picture(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[GalleryTuple] = []

    def write(result: GalleryResult, tuples: list[GalleryTuple], _: float) -> GalleryResult:
        drawn.extend(tuples)
        return result

    monkeypatch.setattr(module, "write_gallery", write)
    draw("fig2", "right", mask_ratio=0.5)
    image, true_loss, predicted, masked = drawn[0].pictures
    assert (image[:, :8] == 255).all()
    blue, red = (np.array(colormaps[RED_IS_HIGH](end)[:3]) * 255 for end in (0.0, 1.0))
    assert np.abs(true_loss[0, 0] - (0.65 * red + 0.35 * 255)).max() < 1
    assert np.abs(true_loss[0, 15] - 0.65 * blue).max() < 1
    assert (predicted == true_loss).all()  # two values each, at the same patches
    assert (masked[:, :8] == 128).all()  # the hardest half is gray
    assert (masked[:, 8:] == 0).all()
    assert list(drawn[0].captions) == ["a.png", "", "rank correlation 1.00", ""]


def test_a_run_without_predictor_has_panels_a_and_b(draw: Draw, tmp_path: Path) -> None:
    result = draw("fig2", "plain", masks=tmp_path / "masks")
    assert result.panels == ("image", "true_loss")
    content = read(result)
    assert content["note"] == NO_PREDICTED_LOSS
    assert NO_PREDICTED_LOSS in (result.gallery.out / "README.md").read_text()
    assert list(content["mean"]) == ["true_loss_auc"]
    assert all(list(row) == ["path", "mean_true_loss", "true_loss_auc"] for row in content["scores"])
    full = read(draw("fig2", "right", masks=tmp_path / "masks", out=tmp_path / "full"))
    assert content["mean"]["true_loss_auc"] == full["mean"]["true_loss_auc"]


def test_the_prediction_of_another_run(draw: Draw, tmp_path: Path) -> None:
    """The true loss is that of RUN, the predicted one that of --predictor, as in the paper."""
    result = draw("fig2", "plain", predictor="wrong", masks=tmp_path / "masks")
    first = read(result)["scores"][0]
    assert (first["auc"], first["true_loss_auc"]) == (0.0, 1.0)
    assert result.means["spearman"] == pytest.approx(-1.0)
    assert "predicted by `wrong`" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("figure", "run", "options", "message"),
    [
        ("fig4", "plain", {}, r"^RUN: fig4 shows predicted losses, plain was trained without"),
        ("figS1", "right", {"predictor": "wrong"}, r"^--predictor: figS1 shows"),
        ("fig2", "right", {"predictor": "plain"}, r"^--predictor: expected a run with a loss predictor, plain has"),
        ("fig2", "right", {"mask_ratio": 75.0}, r"^--mask_ratio: "),
        ("fig2", "right", {"draws": 1}, r"^draws: expected at least 2"),
        ("fig2", "right", {"masks": Path("missing")}, r"^masks: expected one mask for each image"),
    ],
)
def test_mistakes_leave_nothing(
    figure: str, run: str, options: dict[str, Any], message: str, draw: Draw, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        draw(figure, run, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_a_fault_while_drawing_leaves_nothing(draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hardpatch.study.gallery_result.write_result", fail)  # the pages are written before
    with pytest.raises(MemoryError):
        draw("fig2", "right")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "masks"]


def test_a_folder_with_files_is_refused(draw: Draw, tmp_path: Path) -> None:
    draw("fig2", "right")
    written = (tmp_path / "out" / "result.json").read_bytes()
    with pytest.raises(UserError, match=r"^--out: .* already holds other files"):
        draw("fig2", "right")
    assert (tmp_path / "out" / "result.json").read_bytes() == written


def test_many_images_fill_several_pages(draw: Draw, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", {f"{number}.png": gray_patches(seed=number) for number in range(6)})
    result = draw("figS2", "right", columns=1)
    assert [path.name for path in result.pictures] == ["figS2_1.png", "figS2_2.png"]
    heights = [imread(path).shape[0] for path in result.pictures]
    assert len(result.scores) == 10  # eight on the first page
    assert heights[0] > 3 * heights[1]
    assert read(result)["pictures"] == ["figS2_1.png", "figS2_2.png"]


def test_a_broken_picture_is_counted_and_named(draw: Draw, tmp_path: Path) -> None:
    (tmp_path / "in" / "e.png").write_bytes(b"not a picture")
    result = draw("fig4", "right")
    assert (len(result.scores), len(result.bad)) == (4, 1)
    content = read(result)
    assert content["left_out"] == {"undecodable": 1}
    assert "e.png" in content["undecodable"][0]
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "4 of 5 images, drawn at random with seed 0. 1 more were drawn and could not be decoded:" in readme
    assert "e.png" in readme
    with pytest.raises(UserError, match=r"^max_bad_fraction: 1 of 5 images"):
        draw("fig4", "right", max_bad_fraction=0.1, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_seed_chooses_the_images() -> None:
    assert choose(5, 12, 0) == [0, 1, 2, 3, 4]
    chosen = choose(100, 12, 0)
    assert chosen == sorted(set(chosen)) == choose(100, 12, 0)
    assert len(chosen) == 12
    assert choose(100, 12, 1) != chosen
    times = np.bincount([index for seed in range(400) for index in choose(10, 5, seed)], minlength=10)
    assert (np.abs(times - 200) < 60).all()  # six standard deviations of a binomial count


@pytest.mark.parametrize("size", [(16, 16), (96, 96), (8, 24), (24, 8)])
@pytest.mark.parametrize(("titles", "per_row"), [(4, 3), (4, 1), (2, 4), (2, 1)])
def test_no_text_overlaps_another_or_leaves_the_page(
    size: tuple[int, int], titles: int, per_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    name = shorten("ILSVRC2012_VAL_00000293_$1.JPEG", NAME_LENGTH)
    captions = [name, "ROC area: no object", "ROC area: no object\nrank correlation -0.55", ""]
    tuples = [GalleryTuple([picture] * titles, captions[4 - titles :] if titles == 2 else captions)] * 5
    names = ["(a) image", "(b) true loss", "(c) predicted loss", "(d) hardest 75% masked"][-titles:]
    footer = "mean ROC area: true loss 0.62, predicted loss 0.69 · mean rank correlation -0.10"
    drawn = watch(monkeypatch)
    gallery_page(tuples, names, per_row, footer if titles == 4 else "mean ROC area: predicted loss 0.93")
    assert len(drawn.pictures) == 5 * titles + 1
    assert len(drawn.texts) == 5 * titles + min(5, per_row) * titles + 3


def test_a_page_without_images() -> None:
    with pytest.raises(ValueError, match=r"^tuples: expected at least one"):
        gallery_page([], ["image"], 3)


def test_zero_has_no_sign() -> None:
    assert [two_decimals(value) for value in (-0.004, 0.004, -0.006, 0.996)] == ["0.00", "0.00", "-0.01", "1.00"]
