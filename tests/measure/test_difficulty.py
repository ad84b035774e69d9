import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from hardpatch.measure.difficulty import ScoreSummary, find_masks, over_masks, score
from hardpatch.methods import targets
from hardpatch.methods.hpm import HPM, StudentOutput
from hardpatch.methods.losses import pixel_loss
from hardpatch.methods.mae import MAE
from hardpatch.methods.teacher import Teacher, TeacherOutput
from hardpatch.models.decoder import Decoder
from hardpatch.patches import PatchIndices, patchify, to_indices


class Bright(nn.Module):
    """16-px images in patches of 4. It takes bright patches for hard, and it rebuilds black: it is right."""

    patch_size, grid, image_size, has_predictor = 4, (4, 4), (16, 16), True
    sign, rebuilds_pixels = 1.0, True

    def __init__(self) -> None:
        super().__init__()
        self.host = self
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        self.masks: list[Tensor] = []

    def normalize(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def look(self, images: Tensor, *, difficulty: bool = True) -> TeacherOutput:
        return TeacherOutput(torch.zeros(len(images), 17, 2), self.sign * patchify(images, 4).mean(dim=-1), None)

    def answer(self, images: Tensor, mask: PatchIndices, *, predict: bool = True) -> StudentOutput:
        latent = self.encode(images, mask)
        predicted = -self.sign * patchify(images, 4).mean(dim=-1).gather(1, mask.masked)  # the reverse of look
        return StudentOutput(latent, self.reconstruct(latent, mask), predicted if predict else None)

    def encode(self, images: Tensor, mask: Tensor | PatchIndices) -> Tensor:
        self.masks.append(to_indices(mask).masked)
        return torch.zeros(len(images), 1 + to_indices(mask).visible.shape[1], 2)

    def reconstruct(self, latent: Tensor, mask: Tensor | PatchIndices) -> Tensor:
        return torch.zeros(*to_indices(mask).masked.shape, 48)

    def target(self, images: Tensor) -> Tensor:
        return targets.pixels(images, 4)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return pixel_loss(prediction, target)


def bright(sign: float = 1.0) -> HPM:
    model = Bright()
    model.sign = sign
    return cast(HPM, model)


@pytest.fixture(scope="module")
def model() -> HPM:
    """A real one, with random weights."""
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


def steps(size: tuple[int, int] = (16, 16), seed: int = 0) -> np.ndarray:
    """A picture whose 4-px patches are even, each of another gray."""
    grays = np.random.default_rng(seed).permutation(size[0] * size[1] // 16).reshape(size[0] // 4, -1)
    return np.kron(grays.astype(np.uint8), np.full((4, 4), 7, dtype=np.uint8))[..., None].repeat(3, axis=-1)


def folder_of(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    for name, picture in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return folder


def half(size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """A mask of the left half."""
    mask = np.zeros(size, dtype=np.uint8)
    mask[:, : size[1] // 2] = 1  # masks of zeros and ones are as good as those of 0 and 255
    return mask


class First:
    """The first few images of another source, with its masks."""

    skipped = ()

    def __init__(self, source: Any, number: int) -> None:
        self.source, self.number, self.classes = source, number, source.classes

    def __len__(self) -> int:
        return self.number

    def name(self, i: int) -> str:
        return self.source.name(i)

    def image(self, i: int, channels: int) -> np.ndarray:
        return self.source.image(i, channels)

    def encoded(self, i: int) -> bytes | None:
        return self.source.encoded(i)

    def label(self, i: int) -> int | None:
        return self.source.label(i)

    def mask(self, i: int) -> np.ndarray:
        return self.source.mask(i)


def table_of(summary: ScoreSummary) -> list[dict[str, Any]]:
    return pq.read_table(summary.table).to_pylist()


@settings(deadline=None, max_examples=40)
@given(images=st.integers(1, 4), masked=st.integers(1, 15), spare=st.integers(0, 6), seed=st.integers(0, 99))
def test_every_patch_is_masked_equally_often_and_its_loss_averaged(
    images: int, masked: int, spare: int, seed: int
) -> None:
    draws = -(-16 // masked) + spare
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(images, 3, 16, 16, generator=generator)
    model = Bright()
    goal = model.target(pictures)
    losses, foreseen = over_masks(
        cast(HPM, model),
        pictures,
        torch.arange(images) + seed,
        goal,
        masked=masked,
        draws=draws,
        seed=seed,
        predict=True,
    )
    # The model's loss does not depend on what is visible: the average over draws is the loss itself.
    torch.testing.assert_close(losses, patchify(pictures, 4).square().mean(dim=-1))
    torch.testing.assert_close(foreseen, -patchify(pictures, 4).mean(dim=-1))
    times = torch.zeros(images, 16)
    for chosen in model.masks:
        assert chosen.shape == (images, masked)
        times.scatter_add_(1, chosen, torch.ones(images, masked))
    assert len(model.masks) == draws
    assert int(times.min()) == draws * masked // 16
    assert int(times.max()) == -(-draws * masked // 16)


def test_each_draw_by_itself_is_as_random_as_any() -> None:
    model = Bright()
    images = 4000
    pictures = torch.zeros(images, 3, 16, 16)
    goal = model.target(pictures)
    over_masks(cast(HPM, model), pictures, torch.arange(images), goal, masked=12, draws=3, seed=0)
    for chosen in model.masks:
        masked = torch.zeros(images, 16).scatter(1, chosen, 1.0)
        # Means of 4,000 draws with a standard deviation of at most 0.5: within 5 standard errors, 0.04.
        assert (masked.mean(dim=0) - 12 / 16).abs().max() < 0.04
        both = masked.T @ masked / images
        both.fill_diagonal_(12 / 16 * 11 / 15)  # two patches together
        assert (both - 12 / 16 * 11 / 15).abs().max() < 0.04
    assert any(not torch.equal(one, other) for one, other in pairwise(model.masks))


def test_a_predictor_that_is_right_and_one_that_is_wrong(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "in", {"a.png": steps(), "b.png": steps(seed=1)}))
    right = score(bright(), bright(), source, out=tmp_path / "right", pictures=0)
    wrong = score(bright(), bright(sign=-1.0), source, out=tmp_path / "wrong", pictures=0)
    assert right.spearman == pytest.approx(1.0)
    assert wrong.spearman == pytest.approx(-1.0)
    assert right.auc is right.true_loss_auc is None
    first = table_of(wrong)[0]
    grays = steps()[::4, ::4, 0].ravel() / 255
    assert first["path"].endswith("a.png")
    assert (first["rows"], first["columns"]) == (4, 4)
    np.testing.assert_allclose(first["difficulty"], -grays, rtol=1e-5)
    np.testing.assert_allclose(first["true_loss"], grays**2, rtol=1e-5)
    assert first["mean_difficulty"] == pytest.approx(-grays.mean())
    assert first["mean_true_loss"] == pytest.approx((grays**2).mean())
    assert first["spearman"] == pytest.approx(-1.0)


def test_predicted_where_it_is_masked(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "in", {"a.png": steps(), "b.png": steps(seed=1)}))
    nobody = cast(HPM, None)  # the teacher is not asked
    summary = score(bright(), nobody, source, out=tmp_path / "out", predict="masked", pictures=1)
    assert summary.spearman == pytest.approx(-1.0)  # of masked patches it says the reverse
    np.testing.assert_allclose(table_of(summary)[0]["difficulty"], steps()[::4, ::4, 0].ravel() / -255, rtol=1e-5)


def test_an_even_picture_has_no_ranks(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "in", {"a.png": np.zeros((16, 16, 3), np.uint8), "b.png": steps()}))
    summary = score(bright(), bright(), source, out=tmp_path, pictures=0)
    assert [row["spearman"] for row in table_of(summary)] == [None, pytest.approx(1.0)]
    assert summary.spearman == pytest.approx(1.0)


def test_the_hardest_patches_are_masked_for_the_reconstruction(tmp_path: Path) -> None:
    model = Bright()
    source = open_source(folder_of(tmp_path / "in", {"a.png": steps()}))
    score(cast(HPM, model), cast(HPM, model), source, out=tmp_path, mask_ratio=0.6, pictures=1)
    darkest = torch.tensor(steps()[::4, ::4, 0].ravel().astype(int)).argsort()[:6]  # int(16 * 0.4) stay visible
    hidden = sorted(set(range(16)) - set(darkest.tolist()))
    assert model.masks[-1].tolist() == [hidden]
    assert all(mask.shape == (1, 10) for mask in model.masks)


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (48, 32), (40, 40)])
def test_masks_are_resized_and_cropped_like_their_images(tmp_path: Path, size: tuple[int, int]) -> None:
    mask = half(size)
    picture = (mask * 255)[..., None].repeat(3, axis=-1)  # bright where the object is
    source = open_source(folder_of(tmp_path / "in", {"a.jpg": picture}))
    folder_of(tmp_path / "masks", {"deep/a.png": mask})
    summary = score(bright(), bright(), source, out=tmp_path / "out", masks=tmp_path / "masks", pictures=0)
    assert summary.auc == summary.true_loss_auc == 1.0
    inverse = score(bright(), bright(sign=-1.0), source, out=tmp_path / "out", masks=tmp_path / "masks", pictures=0)
    assert (inverse.auc, inverse.true_loss_auc) == (0.0, 1.0)


def test_an_object_outside_the_crop_counts_for_nothing(tmp_path: Path) -> None:
    edge = np.zeros((16, 32), dtype=np.uint8)
    edge[:, :8] = 255
    pictures = {"a.png": np.zeros((16, 32, 3), np.uint8), "b.png": (half() * 255)[..., None].repeat(3, axis=-1)}
    source = open_source(folder_of(tmp_path / "in", pictures))
    folder_of(tmp_path / "masks", {"a.png": edge, "b.png": half()})
    summary = score(bright(), bright(), source, out=tmp_path / "out", masks=tmp_path / "masks", pictures=0)
    assert [row["auc"] for row in table_of(summary)] == [None, 1.0]
    assert summary.auc == 1.0


def test_the_demo_sets_own_masks_pictures_and_any_batch_size(tmp_path: Path, model: HPM) -> None:
    source = cast(Source, First(open_source("demo:test"), 11))
    seen: list[tuple[int, int | None]] = []
    whole = score(
        model,
        Teacher(model),
        source,
        out=tmp_path / "a",
        pictures=3,
        batch_size=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    single = score(model, model, source, out=tmp_path / "b", pictures=0, batch_size=1)
    assert seen == [(5, 11), (10, 11), (11, 11)]
    assert (whole.images, len(whole.pictures), whole.bad) == (11, 3, ())
    assert [path.name for path in whole.pictures] == ["00000-00000.png", "00001-00001.png", "00002-00002.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        *[path.name for path in whole.pictures],
        "contact_sheet.png",
        "scores.parquet",
    ]
    assert (single.pictures, single.contact_sheet) == ((), None)
    for one, other in zip(table_of(whole), table_of(single), strict=True):
        assert one.pop("path") == other.pop("path")
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=1e-4, abs=1e-5), key
    rows = table_of(whole)
    assert len(rows) == 11
    for key in ("spearman", "auc", "true_loss_auc"):
        assert getattr(whole, key) == pytest.approx(np.mean([row[key] for row in rows]))
    assert json.loads(json.dumps(whole.to_dict()))["table"] == str(whole.table)


def test_the_seed_decides_on_the_masks(tmp_path: Path, model: HPM) -> None:
    source = cast(Source, First(open_source("demo:test"), 2))
    tables = [table_of(score(model, model, source, out=tmp_path, pictures=0, seed=seed, draws=2)) for seed in (0, 0, 1)]
    assert tables[0] == tables[1]
    assert tables[0][0]["true_loss"] != tables[2][0]["true_loss"]
    assert tables[0][0]["difficulty"] == tables[2][0]["difficulty"]


def test_broken_files_are_listed(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {"a.png": steps(), "c.png": steps()})
    (tmp_path / "in" / "b.png").write_bytes(b"not a picture")
    summary = score(bright(), bright(), open_source(tmp_path / "in"), out=tmp_path / "out")
    assert summary.images == len(summary.pictures) == 2
    assert [path.name for path in summary.pictures] == ["00000-a.png", "00002-c.png"]
    assert len(summary.bad) == 1
    assert "b.png" in summary.bad[0]


def test_names_of_files_may_be_anything(tmp_path: Path) -> None:
    name = os.fsdecode(b"a b\xff$1$_{.png")
    try:
        folder_of(tmp_path / "in", {"plain.png": steps()}).joinpath("plain.png").rename(tmp_path / "in" / name)
    except OSError:
        pytest.skip("this file system takes Unicode only")
    summary = score(bright(), bright(), open_source(tmp_path / "in"), out=tmp_path / "out")
    assert [path.name for path in summary.pictures] == ["00000-a_b_1___.png"]
    assert table_of(summary)[0]["path"].endswith("a b?$1$_{.png")


def test_masks_are_found_by_stem_and_folder(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "in", {"x/1.jpg": steps(), "x/2.jpg": steps(), "y/1.jpg": steps()}))
    masks = folder_of(tmp_path / "masks", {"y/1.png": half(), "x/1.png": half(), "2.png": half()})
    assert find_masks(source, masks) == [masks / "x/1.png", masks / "2.png", masks / "y/1.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x/1.png", "y/1.png"], r"2\.jpg .*got no such file"),
        (["1.png", "2.png"], r"y/1\.jpg .*got .*1\.png, which is not this image's alone"),
        (["x/1.png", "x/1.bmp", "2.png", "y/1.png"], r"x/1\.jpg .*not this image's alone"),
    ],
)
def test_a_missing_or_doubtful_mask_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    source = open_source(folder_of(tmp_path / "in", {"x/1.jpg": steps(), "x/2.jpg": steps(), "y/1.jpg": steps()}))
    folder_of(tmp_path / "masks", dict.fromkeys(names, half()))
    with pytest.raises(UserError, match=message):
        score(bright(), bright(), source, out=tmp_path / "out", masks=tmp_path / "masks", pictures=0)
    assert not (tmp_path / "out").exists()


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "in", {"a.png": steps()}))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"^masks: expected a readable picture, got .*a\.png"):
        score(bright(), bright(), source, out=tmp_path / "out", masks=tmp_path / "masks", pictures=0)


def test_a_model_without_predictor_cannot_be_scored(tmp_path: Path, model: HPM) -> None:
    plain = HPM(model.host, None)
    with pytest.raises(UserError, match=r"^model: expected one with a loss predictor"):
        score(plain, plain, open_source("demo:test"), out=tmp_path)


def test_too_few_draws(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "in", {"a.png": steps()}))
    with pytest.raises(UserError, match=r"^draws: expected at least 2, .*got 1"):
        score(bright(), bright(), source, out=tmp_path / "out", draws=1)
    score(bright(), bright(), source, out=tmp_path / "out", draws=2, pictures=0)


@pytest.mark.parametrize("mask_ratio", [0.0, 1.0, -1.0, 75.0])
def test_a_mask_ratio_that_makes_no_sense(tmp_path: Path, mask_ratio: float) -> None:
    with pytest.raises(UserError, match=r"^mask_ratio: "):
        score(bright(), bright(), open_source("demo:test"), out=tmp_path, mask_ratio=mask_ratio)


def test_a_file_is_no_folder_for_the_results(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"^out: expected a folder that can be written"):
        score(bright(), bright(), open_source("demo:test"), out=tmp_path / "out")


def test_a_model_that_diverged(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "in", {"a.png": steps()}))
    with pytest.raises(UserError, match=r"^model: expected finite losses"):
        score(bright(), bright(sign=torch.nan), source, out=tmp_path / "out")
