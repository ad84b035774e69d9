"""Numbers that the reference implementations of HPM and MAE computed with small random models, reproduced.

All are compared at rtol 1e-4, atol 1e-5 in float32 on a CPU. The numbers and their origin: tests/golden/README.md.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from hardpatch.interchange.architecture import Facts
from hardpatch.interchange.reference import from_reference
from hardpatch.methods.hpm import HPM
from hardpatch.methods.losses import standardized_absolute_loss
from hardpatch.methods.teacher import Teacher
from hardpatch.models.decoder import Tokens
from hardpatch.patches import gather, to_indices
from hardpatch.train.optimizer import parameter_groups
from tests.golden import FOLDER
from tests.golden.cut import cut
from tests.small import mae_of

HPM_FILES = ["hpm_tiny", "hpm_tiny_norm_pix"]


def read(folder: Path, name: str) -> tuple[HPM, dict[str, Tensor]]:
    path = folder / f"{name}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        settings = file.metadata()
    model = from_reference(
        {key: value for key, value in tensors.items() if key.startswith("model.")},
        Facts(heads=int(settings["num_heads"])),
        decoder_heads=int(settings["decoder_num_heads"]),
        normalize_pixels=settings["norm_pix_loss"] == "True",
    )
    return model, tensors


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected.reshape(actual.shape), rtol=1e-4, atol=1e-5)


def first_images_close(actual: Tensor, expected: Tensor) -> None:
    """Compare as many images as the file has: the first, or all."""
    close(actual[: len(expected)], expected)


@pytest.mark.parametrize("name", HPM_FILES)
@torch.no_grad()
def test_forward(golden_folder: Path, name: str) -> None:
    model, golden = read(golden_folder, name)
    images, mask = golden["images"], golden["mask"]
    latent = model.encode(images, mask)
    close(latent, golden["latent"])
    first_images_close(model.reconstruct(latent, mask), golden["pixels_of_masked"])
    predicted = model.predict(images, to_indices(mask)).predicted
    assert predicted is not None
    close(predicted, golden["loss_pred_of_masked"])
    losses = model(images, mask)
    close(losses.reconstruction, golden["rec_loss_per_patch"])
    close(losses.reconstruction.mean(), golden["rec_loss"])
    close(losses.parts["predicting_loss"], golden["relative_loss"])
    close(losses.loss, golden["rec_loss"] + golden["relative_loss"])
    close(standardized_absolute_loss(losses.predicted, losses.reconstruction), golden["absolute_loss_zscored"])


@pytest.mark.parametrize("name", HPM_FILES)
def test_teacher_on_whole_images(golden_folder: Path, name: str) -> None:
    model, golden = read(golden_folder, name)
    teacher = Teacher(model)
    first_images_close(teacher.network.encode(golden["images"]), golden["teacher.latent"])
    close(teacher.predict_loss(golden["images"]), golden["teacher.loss_pred"])


@pytest.mark.parametrize("name", HPM_FILES)
def test_positions(golden_folder: Path, name: str) -> None:
    model, golden = read(golden_folder, name)
    positions = model.host.encoder.positions
    assert positions is not None
    close(positions, golden["model.pos_embed"][0, 1:])
    close(mae_of(model).decoder_embed.positions, golden["model.decoder_pos_embed"][0, 1:])
    assert not golden["model.pos_embed"][0, 0].any()  # the class token has no position


@pytest.mark.parametrize("name", HPM_FILES)
def test_five_optimizer_steps(golden_folder: Path, name: str) -> None:
    model, golden = read(golden_folder, name)
    teacher = Teacher(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05), lr=1e-3, betas=(0.9, 0.95))
    for step, mask in enumerate(golden["steps.mask"]):
        losses = model(golden["images"], mask)
        optimizer.zero_grad()
        losses.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        teacher.update(model, momentum=0.99)
        close(losses.reconstruction.mean(), golden["steps.rec_loss"][step])
        close(losses.parts["predicting_loss"], golden["steps.pred_loss"][step])
        close(norm, golden["steps.grad_norm"][step])
    close(teacher.predict_loss(golden["images"]), golden["steps.teacher_loss_pred"])


@torch.no_grad()
def test_mae(golden_folder: Path) -> None:
    model, golden = read(golden_folder, "mae_tiny")
    assert not model.has_predictor
    images, mask = golden["images"], golden["mask"]
    close(model(images, mask).loss, golden["loss"])
    prediction = model.reconstruct(model.encode(images, mask), mask)
    first_images_close(prediction, gather(golden["pred"], to_indices(mask[: len(golden["pred"])]).masked))
    # `pred` is in image order and holds visible patches too: the decoder sees the same tokens, all of them are read
    # out; here visible patches come first.
    tokens = mae_of(model).decoder_embed(model.encode(images, mask), mask)
    assert tokens.mask_tokens is not None
    everything = torch.cat([tokens.sequence, F.embedding(to_indices(mask).masked, tokens.mask_tokens)], dim=1)
    pred = mae_of(model).reconstructor(Tokens(everything, slice(1, None)))
    order = torch.cat(to_indices(mask)[:2], dim=1)
    first_images_close(pred, gather(golden["pred"], order[: len(golden["pred"])]))


def test_the_committed_files_are_cut_from_the_full_ones(shared: Path, tmp_path: Path) -> None:
    cut(shared / "golden", tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert_close(load_file(path), load_file(FOLDER / path.name), rtol=0, atol=0)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FOLDER.glob("*.safetensors")}
