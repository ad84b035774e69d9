"""What the viewer shows, without its page: the same masks, losses and maps as the library's own functions give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hardpatch.choices import MaskName
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.evaluate.difficulty import RunModels
from hardpatch.interchange.load import TrainingMasks
from hardpatch.measure.difficulty import hardest_patches, patch_difficulty
from hardpatch.methods.beit import BEiT
from hardpatch.methods.hpm import HPM
from hardpatch.methods.ibot import IBOT
from hardpatch.methods.masking import draw_mask, masked_count, noise_count
from hardpatch.methods.mining import hard_patches
from hardpatch.methods.simmim import SimMIM
from hardpatch.methods.targets import HostTargets
from hardpatch.randomness import patch_noise
from hardpatch.view.app import NOTHING, Viewer
from hardpatch.view.neighbors import FeatureSet
from hardpatch.view.scene import Choice, Scene, Seen
from tests.small import small_beit, small_hpm, small_ibot, small_mae, small_simmim

CPU = torch.device("cpu")
PATCHES, GRID = 24, (4, 6)


def scene_of(model: HPM, name: str = "run") -> Scene:
    student = model.eval()
    return Scene(name, RunModels(student, student, None, TrainingMasks(0.75, "whole")), CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write eight images, the last two of which are the same."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        pixels = np.random.default_rng(min(number, 6)).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def scene() -> Scene:
    return scene_of(small_hpm())


@pytest.fixture(scope="module")
def seen(scene: Scene, folder: Path) -> Seen:
    return scene.see(open_source(folder), 3)


def test_maps_are_those_of_score(scene: Scene, seen: Seen) -> None:
    model, images = scene.student, scene.student.normalize(seen.pixels)
    for predict in ("whole", "masked"):
        expected = patch_difficulty(
            model, model, seen.pixels, torch.tensor([3]), masked=18, draws=10, seed=0, predict=predict, target=None
        )
        assert expected.predicted is not None
        assert torch.equal(seen.maps[predict], expected.predicted)
        assert torch.equal(seen.maps["true_loss"], expected.true_loss)
    latent, attention = model.host.encoder.forward_with_attention(images)
    assert torch.equal(seen.maps["attention"], attention)
    assert torch.allclose(seen.vector, torch.nn.functional.normalize(latent[0, 1:].mean(dim=0), dim=0), atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "block", "grid", "attention_high"])
def test_without_alpha_the_mask_is_drawn(scene: Scene, seen: Seen, kind: MaskName) -> None:
    found = scene.mask(seen, Choice(mask_ratio=0.75, alpha=0.0, mask=kind, seed=5))
    noise = patch_noise(5, 0, torch.zeros(1, dtype=torch.int64), noise_count(kind, PATCHES))
    expected = draw_mask(kind, noise, 18, grid=GRID, attention=seen.maps["attention"])[0]
    assert found.mined == 0
    assert np.array_equal(found.mask, expected.numpy())


@pytest.mark.parametrize("by", ["whole", "masked", "true_loss"])
@pytest.mark.parametrize("mining", ["hard", "easy"])
def test_with_alpha_one_the_mask_is_the_extreme_patches(scene: Scene, seen: Seen, by: str, mining: str) -> None:
    found = scene.mask(seen, Choice(alpha=1.0, mining="hard" if mining == "hard" else "easy", by=by))
    values = seen.maps[by] if mining == "hard" else -seen.maps[by]
    assert found.mined == 18
    assert np.array_equal(found.mask, hardest_patches(values, 18)[0].numpy())


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("alpha", [0.0, 0.33, 1.0])
def test_counts_are_exact(scene: Scene, seen: Seen, ratio: float, alpha: float) -> None:
    found = scene.mask(seen, Choice(mask_ratio=ratio, alpha=alpha, seed=1))
    masked = masked_count(PATCHES, ratio)
    assert (int(found.mask.sum()), found.mined) == (masked, int(masked * alpha))
    noise = patch_noise(1, 0, torch.zeros(1, dtype=torch.int64), PATCHES)
    expected = hard_patches(seen.maps["whole"], noise, masked, int(masked * alpha))
    assert np.array_equal(found.mask, expected[0].numpy())


def test_visible_patches_of_the_reconstruction_are_the_image(scene: Scene, seen: Seen) -> None:
    found, image = scene.mask(seen, Choice()), scene.picture(seen.pixels)
    assert found.reconstruction is not None
    pixels = np.repeat(np.repeat(found.mask.reshape(GRID), 4, axis=0), 4, axis=1)
    assert np.array_equal(found.reconstruction[~pixels], image[~pixels])
    assert not np.array_equal(found.reconstruction[pixels], image[pixels])
    assert (found.image[pixels] == found.image[pixels][0]).all()
    assert np.array_equal(found.image[~pixels], image[~pixels])


def test_squares_are_masked_as_a_whole(scene: Scene, seen: Seen) -> None:
    mask = scene.mask(seen, Choice(unit=2, mask_ratio=0.5)).mask.reshape(2, 2, 3, 2)
    assert (mask.all(axis=(1, 3)) | ~mask.any(axis=(1, 3))).all()
    with pytest.raises(UserError, match="squares of 4 patches do not fit"):
        scene.mask(seen, Choice(unit=4))


def test_without_a_predictor_nothing_is_predicted(folder: Path) -> None:
    plain = scene_of(HPM(small_mae(), None), "<plain>")
    viewer = Viewer([plain])
    seen = viewer.see_file(str(folder / "1.png"))
    assert isinstance(seen, tuple)
    assert set(seen[0].maps) == {"true_loss", "attention"}
    assert plain.default.by == "true_loss"
    assert "no loss predictor" in viewer.maps(seen)
    assert "Nothing is mined" in viewer.masks(seen, Choice(by="whole"))
    assert "Nothing is mined" not in viewer.masks(seen, plain.default)
    assert "&lt;plain&gt;" in viewer.maps(seen)
    assert "<plain>" not in viewer.maps(seen)


@pytest.mark.parametrize("host", [small_simmim(), small_beit(), small_ibot()], ids=["simmim", "beit", "ibot"])
def test_other_hosts(host: Any, folder: Path) -> None:
    one = scene_of(HPM(host, None))
    tokens = torch.randint(11, (1, PATCHES), generator=torch.Generator().manual_seed(0))  # as of a tokenizer
    targets: dict[type, Any] = {SimMIM: None, BEiT: lambda pixels, output, mask: tokens, IBOT: HostTargets(host)}
    one.models = one.models._replace(target=targets[type(host)])
    seen = one.see(open_source(folder), 2)
    found = one.mask(seen, Choice(alpha=1.0, by="true_loss"))
    assert np.array_equal(found.mask, hardest_patches(seen.maps["true_loss"], 18)[0].numpy())
    assert (found.reconstruction is not None) == isinstance(host, SimMIM)
    assert np.isfinite(found.loss)


def test_neighbors(scene: Scene, folder: Path) -> None:
    source = open_source(folder)
    features = FeatureSet(scene.student, source, CPU, batch_size=3)
    found = features.nearest(scene.see(source, 6).vector, but=6)
    assert len(found) == 6
    assert found[0].number == 7
    assert found[0].similarity == pytest.approx(1, abs=1e-5)
    assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)


def test_files_that_are_no_images(scene: Scene, tmp_path: Path) -> None:
    viewer, broken = Viewer([scene]), tmp_path / "<b>.png"
    broken.write_bytes(b"no picture")
    assert viewer.see_file(None) == NOTHING
    said = viewer.see_file(str(broken))
    assert isinstance(said, str)
    assert "&lt;b&gt;.png" in viewer.maps(said)
    assert viewer.masks(said, Choice()) == ""
