import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

import hardpatch
from hardpatch.choices import SIZES
from hardpatch.data.demo import demo_source
from hardpatch.data.reading import Reading
from hardpatch.errors import UserError
from hardpatch.export.result import ExportResult, compare_outputs, new_path
from hardpatch.export.run import export_hugging_face, export_timm
from hardpatch.export.to_timm import timm_arguments
from hardpatch.interchange.backbone import load_backbone
from hardpatch.methods.masking import random_mask
from hardpatch.models.encoder import Encoder
from hardpatch.patches import gather, to_indices
from tests.export.runs import MEAN, STD, run_of

SIZED: dict[str, Any] = {"decoder_width": 16, "decoder_heads": 2, "decoder_depth": 1}


def load_exported(result: ExportResult) -> Any:
    """Load the model by the printed line of Python."""
    transformers.utils.logging.disable_progress_bar()
    return eval(result.code, {"timm": timm, "transformers": transformers}).eval()


@torch.no_grad()
def features(model: Any, images: Tensor) -> Tensor:
    """Features ``[B, 1 + N, D]`` of an encoder, or of a model of timm or Hugging Face."""
    if isinstance(model, Encoder):
        return model(images)
    return model.forward_features(images) if hasattr(model, "forward_features") else model(images).last_hidden_state


def example_images(size: tuple[int, int], channels: int = 3) -> Tensor:
    """Return a random image and one of the embedded set."""
    torch.manual_seed(0)
    pixels = (
        torch.from_numpy(demo_source("test").image(7, Reading(channels))).permute(2, 0, 1)[None].float() / 127.5 - 1
    )
    return torch.cat([torch.randn(1, channels, *size), F.interpolate(pixels, size=size, mode="bicubic")])


def check(result: ExportResult, encoder: Encoder) -> Any:
    """Check that the exported model has the features of the encoder. Returns the exported model."""
    images = example_images(result.image_size, encoder.channels)
    exported, expected = load_exported(result), features(encoder.eval(), images)
    assert expected.abs().max() > 1.0
    assert_close(features(exported, images), expected, rtol=0, atol=1e-5)
    assert result.difference is not None
    assert result.difference.random < 1e-5
    assert result.difference.real is not None
    assert result.difference.real < 1e-5
    return exported


@pytest.mark.parametrize(
    ("model", "image_size", "call"),
    [
        ({"size": "tiny"}, 224, 'timm.create_model("vit_tiny_patch16_224", num_classes=0'),
        ({"size": "small"}, 64, 'timm.create_model("vit_small_patch16_224", img_size=64, num_classes=0'),
        ({"size": "base"}, 32, 'timm.create_model("vit_base_patch16_224", img_size=32, num_classes=0'),
        # 3 of its 24 blocks, to save memory
        ({"size": "large", "depth": 3}, 32, "patch_size=16, embed_dim=1024, depth=3, num_heads=16"),
    ],
    ids=["tiny", "small", "base", "large"],
)
def test_standard_shapes(tmp_path: Path, model: dict[str, Any], image_size: int, call: str) -> None:
    run = run_of(tmp_path / "run", teacher=False, model=SIZED | model, data={"image_size": image_size})
    encoder = load_backbone(run).encoder
    to_timm = export_timm(run, tmp_path / "vit.safetensors")
    assert call in to_timm.code
    check(to_timm, encoder)
    check(export_hugging_face(run, tmp_path / "vit"), encoder)
    shutil.rmtree(tmp_path)  # up to a gigabyte


@pytest.mark.parametrize(
    ("host", "model", "data"),
    [
        ("mae", {}, {"image_size": 28, "channels": 1}),
        ("mae", {"patch_size": 14}, {"image_size": 28}),
        ("simmim", {"layer_scale": 0.1}, {"image_size": [12, 20]}),
        ("ibot", {"positions": "learned"}, {"image_size": [12, 20]}),
    ],
)
@pytest.mark.parametrize("weights", ["student", "teacher"])
def test_other_shapes_hosts_and_the_teacher(
    tmp_path: Path, host: str, model: dict[str, Any], data: dict[str, Any], weights: Any
) -> None:
    run = run_of(tmp_path / "run", host, model=model, data=data, method={"mask_ratio": 0.5})
    backbone = load_backbone(run, weights)
    result = export_timm(run, tmp_path / "vit.safetensors", weights)
    exported = check(result, backbone.encoder)
    data_config = timm.data.resolve_model_data_config(exported)
    assert data_config["mean"] == MEAN[: len(backbone.mean)]
    assert data_config["std"] == STD[: len(backbone.mean)]
    assert data_config["input_size"] == (backbone.encoder.channels, *result.image_size)
    check(export_hugging_face(run, tmp_path / "vit", weights), backbone.encoder)

    reloaded = load_backbone(tmp_path / "vit.safetensors")
    images = example_images(result.image_size, reloaded.encoder.channels)
    assert torch.equal(features(reloaded.encoder.eval(), images), features(backbone.encoder, images))
    assert_close((reloaded.mean, reloaded.std), (backbone.mean, backbone.std), rtol=1e-6, atol=0)


@pytest.mark.parametrize("model", [{}, {"layer_scale": 0.1}])
def test_relative_positions_become_timms_beit(tmp_path: Path, model: dict[str, Any]) -> None:
    model = model | {"positions": "relative"}
    run = run_of(tmp_path / "run", "beit", model=model, data={"image_size": [12, 20]})
    result = export_timm(run, tmp_path / "beit.safetensors")
    assert isinstance(check(result, load_backbone(run).encoder), timm.models.beit.Beit)
    with pytest.raises(UserError, match="expected --to timm"):
        export_hugging_face(run, tmp_path / "vit")
    with torch.no_grad():  # without the biases of keys, which change nothing
        images = torch.randn(2, 3, 12, 20)
        one, other = (load_backbone(path).encoder.eval()(images) for path in (run, tmp_path / "beit.safetensors"))
        assert torch.allclose(one, other, atol=1e-5)


def test_standard_shapes_have_names() -> None:
    with torch.device("meta"):  # shapes only
        beit = Encoder(image_size=(224, 224), patch_size=16, drop_masked=False, positions="relative", layer_scale=0.1)
        shape: dict[str, Any] = {**SIZES["huge"]}
        huge = Encoder(image_size=(448, 224), patch_size=14, **shape)
    name, arguments = timm_arguments(beit, MEAN, STD)
    assert name == "beit_base_patch16_224"
    assert not {"img_size", "patch_size", "embed_dim", "depth", "num_heads"} & set(arguments)
    name, arguments = timm_arguments(huge, MEAN, STD)
    assert name == "vit_huge_patch14_224"
    assert sorted(arguments) == ["img_size", "num_classes", "pretrained_cfg_overlay"]


def test_from_a_timm_file_to_hugging_face(tmp_path: Path) -> None:
    # with learned positions, also of the class token, a narrow MLP and layer scale
    torch.manual_seed(0)
    vit: Any = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=28, depth=2, num_heads=1, mlp_ratio=61.5 / 28, init_values=0.3
    ).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    hidden = vit.blocks[0].mlp.fc1.out_features
    assert (hidden, int(28 * (hidden / 28))) == (61, 60)  # a ratio that does not survive rounding
    save_file(vit.state_dict(), tmp_path / "dino.safetensors")
    result = export_hugging_face(tmp_path / "dino.safetensors", tmp_path / "vit")
    images = example_images((16, 16))
    assert_close(features(load_exported(result), images), features(vit, images), rtol=0, atol=1e-5)
    to_timm = export_timm(tmp_path / "dino.safetensors", tmp_path / "vit.safetensors")
    assert_close(features(load_exported(to_timm), images), features(vit, images), rtol=0, atol=1e-5)


def test_hugging_face_finds_every_key_and_no_other(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    export_hugging_face(run, tmp_path / "vit")
    export_hugging_face(run, tmp_path / "mae", form="vit_mae")
    classes: list[tuple[Any, str, dict[str, bool]]] = [
        (transformers.ViTModel, "vit", {"add_pooling_layer": False}),
        (transformers.ViTMAEForPreTraining, "mae", {}),
    ]
    for model, folder, options in classes:
        _, loading_info = model.from_pretrained(tmp_path / folder, output_loading_info=True, **options)
        assert {name: list(keys) for name, keys in loading_info.items() if keys} == {}
    assert sorted(path.name for path in (tmp_path / "mae").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "parity.json",
        "preprocessor_config.json",
    ]
    # all files have the same permissions
    modes = {path.stat().st_mode for path in (tmp_path / "mae").iterdir()}
    assert len(modes) == 1


def test_the_image_processor_normalizes_as_the_run_does(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", data={"image_size": 32})
    export_hugging_face(run, tmp_path / "vit")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "vit")
    pixels = demo_source("test").image(3)
    processed = torch.as_tensor(np.asarray(processor(pixels, return_tensors="pt")["pixel_values"]))
    normalized = hardpatch.load(run).normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert_close(processed, normalized, rtol=0, atol=1e-5)


@torch.no_grad()
def check_masked_images(exported: Any, model: hardpatch.HPM, images: Tensor, mask: Tensor) -> None:
    """Compare latent, predictions and loss of a whole MAE with those of Hugging Face's class."""
    # The library keeps the patches with the least noise in the order of the noise, here the order of the patches.
    noise = mask.float() + torch.linspace(0, 0.5, mask.shape[1])
    patches = to_indices(mask)
    latent = model.encode(images, mask)
    outputs = exported(images, noise=noise)
    assert torch.equal(outputs.mask.bool(), mask)
    assert_close(exported.vit(images, noise=noise).last_hidden_state, latent, rtol=0, atol=1e-5)
    assert_close(gather(outputs.logits, patches.masked), model.reconstruct(latent, mask), rtol=0, atol=1e-5)
    target = gather(model.target(images), patches.masked)
    loss = model.reconstruction_loss(model.reconstruct(latent, mask), target).mean()
    assert_close(outputs.loss, loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "norm_pix_loss"),
    [
        ({"target": "pixels"}, False),
        ({"target": "normalized_pixels", "mask_ratio": 0.5, "predicting_loss": "none"}, True),
    ],
)
def test_a_whole_mae(tmp_path: Path, method: dict[str, Any], norm_pix_loss: bool) -> None:
    run = run_of(tmp_path / "run", method=method)
    result = export_hugging_face(run, tmp_path / "mae", form="vit_mae")
    assert result.difference is not None
    assert result.difference.random < 1e-5
    exported = load_exported(result)
    assert exported.config.norm_pix_loss is norm_pix_loss
    mask = random_mask(torch.rand(2, 16), round(16 * method.get("mask_ratio", 0.75)))
    check_masked_images(exported, hardpatch.load(run), example_images((16, 16)), mask)


def test_the_encoder_of_a_whole_mae(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    export_hugging_face(run, tmp_path / "mae", form="vit_mae")
    config = transformers.ViTConfig(**json.loads((tmp_path / "mae" / "config.json").read_text()))
    vit = transformers.ViTModel.from_pretrained(tmp_path / "mae", config=config, add_pooling_layer=False).eval()
    images = example_images((16, 16))
    assert_close(features(vit, images), features(load_backbone(run).encoder.eval(), images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_reference_mae(shared: Path, tmp_path: Path) -> None:
    path = shared / "golden" / "mae_tiny.safetensors"
    golden = load_file(path)
    options: Any = {"heads": 3, "decoder_heads": 4, "normalize_pixels": True}
    result = export_hugging_face(path, tmp_path / "mae", form="vit_mae", **options)
    exported = load_exported(result)
    images, mask = golden["images"], golden["mask"].bool()
    check_masked_images(exported, hardpatch.load(path, **options), images, mask)
    outputs = exported(images, noise=mask.float() + torch.linspace(0, 0.5, mask.shape[1]))
    assert_close(outputs.logits, golden["pred"], rtol=1e-4, atol=1e-5)  # also of the visible patches
    assert_close(outputs.loss, golden["loss"].squeeze(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("host", "weights", "changes", "message"),
    [
        ("mae", "teacher", {}, "which a teacher lacks"),
        ("simmim", "student", {}, "vit_mae is for host mae"),
        ("mae", "student", {"method": {"target": "teacher"}}, "this model a network's features"),
        ("mae", "student", {"data": {"image_size": [16, 24]}}, "got 4 x 6 patches"),
    ],
)
def test_models_that_vit_mae_does_not_support(
    tmp_path: Path, host: str, weights: Any, changes: dict[str, Any], message: str
) -> None:
    run = run_of(tmp_path / "run", host, **changes)
    with pytest.raises(UserError, match=message) as error:
        export_hugging_face(run, tmp_path / "mae", weights, form="vit_mae")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    check(export_hugging_face(run, tmp_path / "vit", weights), load_backbone(run, weights).encoder)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "transformers", None)  # makes any import of it fail
    result = export_hugging_face(run, tmp_path / "vit")
    assert result.difference is None
    assert (tmp_path / "vit" / "model.safetensors").is_file()


def fail_while_writing(out: Path) -> float:
    with new_path(out) as path:
        path.write_text("incomplete")
        return 1 / 0


def test_nothing_is_overwritten_or_left_incomplete(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (tmp_path / "vit.safetensors").write_text("precious")
    (tmp_path / "vit").mkdir()
    for export_function, out in ((export_timm, "vit.safetensors"), (export_hugging_face, "vit")):
        with pytest.raises(UserError, match="exists and is never overwritten"):
            export_function(run, tmp_path / out)
    with pytest.raises(UserError, match=r"expected a file that ends in .safetensors, or a folder, got"):
        export_timm(run, tmp_path / "vit.pth")
    with pytest.raises(UserError, match="--out: cannot write"):
        export_timm(run, tmp_path / "vit.safetensors" / "below.safetensors")
    with pytest.raises(ZeroDivisionError):
        fail_while_writing(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "vit", "vit.safetensors"]
    assert (tmp_path / "vit.safetensors").read_text() == "precious"
    export_timm(run, tmp_path / "new" / "vit.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["vit.safetensors"]


def test_different_outputs_are_an_error(tmp_path: Path) -> None:
    encoder = load_backbone(run_of(tmp_path)).encoder.eval()
    assert compare_outputs(encoder, encoder, encoder).random == 0.0
    with pytest.raises(RuntimeError, match="nothing was written"):
        compare_outputs(encoder, encoder, lambda images: encoder(images) + 0.1)
    with pytest.raises(RuntimeError, match="nothing was written"):
        compare_outputs(encoder, encoder, lambda images: encoder(images) * torch.nan)
