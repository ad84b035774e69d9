"""Export weights to other libraries, and compare the outputs there with those of this package."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.data.demo import demo_source
from hardpatch.data.reading import RGB, Reading
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, reason_of
from hardpatch.export import hugging_face_outputs, to_hugging_face
from hardpatch.interchange.backbone import Backbone, load_backbone
from hardpatch.export.file_check import FileDifference, Outputs, compare_files, unchecked
from hardpatch.interchange.foreign import EXPORTED
from hardpatch.interchange.load import load, training_masks
from hardpatch.export.to_timm import timm_arguments, timm_config, timm_data, timm_state
from hardpatch.methods.mae import MAE
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.paths import user_path
from hardpatch.pickles import save_tensors

OTHER_FILES = (".bin", ".ckpt", ".onnx", ".pt", ".pth")
"""Endings of files of weights that are not written."""
REAL_IMAGES = 2
"""Images of the embedded set in the comparison, in addition to a random one."""
TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, that counts as rounding."""


class OutputDifference(NamedTuple):
    """Difference between the outputs of the other library and of this one."""

    random: float
    """largest absolute difference on an image of random numbers"""
    real: float | None
    """the same on real images; None if they do not have the model's number of channels"""
    largest: float
    """largest absolute output"""


class ExportResult(NamedTuple):
    """Result of an export."""

    path: Path
    code: str
    """Python code that loads the model"""
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...]
    """likewise"""
    image_size: tuple[int, int]
    """(height, width) in pixels"""
    difference: OutputDifference | None
    """None if the other library is not installed"""
    preprocessing: str
    """Python code of the other library that prepares image files for ``model``"""
    files: FileDifference | None
    """None if the other library is not installed, or for the reason in `not_from_files`"""
    not_from_files: str | None = None
    """reason why the other library cannot read image files as the model needs them"""
    reading: Reading = RGB
    """type and range of the pixels before that"""


def export(
    run: str | Path,
    to: Literal["timm", "hf"],
    out: str | Path,
    weights: Literal["student", "teacher"] = "student",
    **options: Any,
) -> ExportResult:
    """Write weights for timm or Hugging Face, load them there and compare the outputs: ``hardpatch export``.

    Args:
        run: anything that :func:`~hardpatch.interchange.backbone.load_backbone` reads.
        to: ``timm`` writes a file or a folder, ``hf`` a folder.
        out: a new file or folder.
        weights: which weights of the run.
        options: see :func:`export_timm` and :func:`export_hugging_face`.

    Raises:
        UserError: for weights that cannot be exported, or an ``out`` that exists.
    """
    write: Callable[..., ExportResult] = {"timm": export_timm, "hf": export_hugging_face}[to]
    return write(run, out, weights, **options)


def export_timm(
    run: str | Path, out: str | Path, weights: Literal["student", "teacher"] = "student", *, heads: int | None = None
) -> ExportResult:
    """Write the encoder of ``run`` as a ``.safetensors`` file or as a folder that ``timm.create_model`` loads strictly.

    An encoder with relative positions becomes timm's BEiT, any other its ViT. A folder holds the preprocessing, too, in
    the ``config.json`` of timm's hub. In a file it is metadata, which timm does not read.

    Args:
        run: anything that :func:`~hardpatch.interchange.backbone.load_backbone` reads.
        out: a new file that ends in ``.safetensors``, or a new folder.
        weights: which weights of the run.
        heads: attention heads, if the file does not say.

    Raises:
        UserError: if there is nothing to load, or ``out`` exists or cannot be written.
    """
    import timm

    out = user_path(out, "--out")
    if out.suffix in OTHER_FILES:
        raise UserError(f"--out: expected a file that ends in .safetensors, or a folder, got {out}")
    check_new(out)
    backbone = _backbone(run, weights, heads)
    encoder = backbone.encoder
    name, arguments = timm_arguments(encoder, backbone.mean, backbone.std)
    config = timm_config(encoder, name, arguments)
    settings = encoder_settings(encoder)
    metadata = {key: settings[key] for key in ("image_size", "heads")} | {"mean": backbone.mean, "std": backbone.std}
    metadata["reading"] = backbone.reading.to_dict()
    with _new_path(out) as path:
        file = path
        if out.suffix != ".safetensors":
            _write_folder(path, config)
            file = path / "model.safetensors"
        save_tensors(
            _cloned(timm_state(encoder)), file, {EXPORTED: json.dumps(metadata), "timm_config": json.dumps(config)}
        )
        network: Any
        if file is path:
            network = timm.create_model(name, **arguments, checkpoint_path=str(path))
            keywords = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            code = f'timm.create_model("{name}", {keywords}, checkpoint_path="{out}")'
        else:
            network = timm.create_model(f"local-dir:{path}", pretrained=True)
            code = f'timm.create_model("local-dir:{out}", pretrained=True)'
        outputs = network.eval().forward_features
        difference = _difference(encoder, encoder, outputs)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
        library = f"timm {timm.__version__}"
        files = compare_files(backbone, encoder, outputs, lambda picture: transform(picture)[None], library)
    preprocessing = "timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    return _result(backbone, out, code, difference, preprocessing, files)


def export_hugging_face(
    run: str | Path,
    out: str | Path,
    weights: Literal["student", "teacher"] = "student",
    *,
    form: Literal["vit", "vit_mae"] = "vit",
    heads: int | None = None,
    decoder_heads: int | None = None,
    normalize_pixels: bool = False,
) -> ExportResult:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` for ``from_pretrained``.

    Args:
        run: anything that :func:`~hardpatch.interchange.backbone.load_backbone` reads; with ``vit_mae`` anything
            that :func:`hardpatch.load` reads.
        out: a new folder.
        weights: which weights of the run.
        form: ``vit``, the encoder for ``ViTModel``; or ``vit_mae``, encoder and reconstructor of host mae for
            ``ViTMAEForPreTraining``.
        heads: attention heads of the encoder, if the file does not say.
        decoder_heads: of the decoder, if the file does not say.
        normalize_pixels: the targets were normalized per patch, if the file does not say.

    Raises:
        UserError: if there is nothing to load, the class cannot hold it, or ``out`` exists or cannot be written.
    """
    out = user_path(out, "--out")
    check_new(out)
    own_outputs: Outputs
    load_outputs: Callable[[Path], Outputs]
    if form == "vit":
        backbone = _backbone(run, weights, heads)
        config, state = to_hugging_face.vit(backbone.encoder)
        own_outputs, load_outputs = backbone.encoder, hugging_face_outputs.vit_outputs
        code = f'transformers.ViTModel.from_pretrained("{out}", add_pooling_layer=False)'
    elif weights == "teacher":
        raise UserError("--form: vit_mae has a reconstructor, which a teacher lacks; export the student")
    else:
        model = load(run, heads=heads, decoder_heads=decoder_heads, normalize_pixels=normalize_pixels)
        host = model.host
        if not isinstance(host, MAE):
            raise UserError(f"--form: vit_mae is for host mae, {run} has {type(host).__name__}; use --form vit")
        mean, std = _rounded(model.mean.tolist()), _rounded(model.std.tolist())
        backbone = Backbone(host.encoder, mean, std, model.reading)
        ratio, _ = training_masks(run)
        config, state = to_hugging_face.vit_mae(host, ratio)
        own_outputs, load_outputs = hugging_face_outputs.of_vit_mae(host, ratio)
        code = f'transformers.ViTMAEForPreTraining.from_pretrained("{out}")'
    encoder, mean, std = backbone[:3]
    config |= to_hugging_face.processor_entries(timm_data(encoder, mean, std))
    with _new_path(out) as folder:
        _write_folder(folder, config, to_hugging_face.preprocessor(encoder, mean, std))
        save_tensors(_cloned(state), folder / "model.safetensors", {"format": "pt"})
        difference = files = None
        if importlib.util.find_spec("transformers") is not None:
            outputs = load_outputs(folder)
            difference = _difference(encoder, own_outputs, outputs)
            files = compare_files(backbone, own_outputs, outputs, *hugging_face_outputs.preprocessing(folder))
    preprocessing = f'transformers.AutoImageProcessor.from_pretrained("{out}")'
    return _result(backbone, out, code, difference, preprocessing, files)


def _result(
    backbone: Backbone,
    out: Path,
    code: str,
    difference: OutputDifference | None,
    preprocessing: str,
    files: FileDifference | None,
) -> ExportResult:
    encoder, mean, std, reading = backbone
    size, reason = encoder.image_size, unchecked(backbone)
    return ExportResult(out, code, mean, std, size, difference, preprocessing, files, reason, reading)


def check_new(out: Path) -> None:
    """Check that ``out`` does not exist.

    Raises:
        UserError: if it does.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out: {out} exists and is never overwritten; choose a new name")


@torch.no_grad()
def _difference(encoder: Encoder, own_outputs: Outputs, exported_outputs: Outputs) -> OutputDifference:
    """Compare the outputs for the same images.

    Raises:
        RuntimeError: if they differ by more than rounding.
    """
    noise = torch.randn(1, encoder.channels, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    real = None
    if encoder.channels in (1, 3):
        source = demo_source("test")
        pixels = np.stack([source.image(i, Reading(encoder.channels)) for i in range(REAL_IMAGES)])
        real = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        real = F.interpolate(real, size=encoder.image_size, mode="bicubic", antialias=True)
    images = noise if real is None else torch.cat([noise, real])
    expected = own_outputs(images)
    difference = (exported_outputs(images) - expected).abs().flatten(1).amax(dim=1).tolist()
    largest = expected.abs().max().item()
    result = OutputDifference(difference[0], None if real is None else max(difference[1:]), largest)
    if not max(difference) <= TOLERANCE * largest:
        raise RuntimeError(f"the exported model gives other outputs, nothing was written: {result}")
    return result


def _backbone(run: str | Path, weights: Literal["student", "teacher"], heads: int | None) -> Backbone:
    encoder, mean, std, reading = load_backbone(run, weights, heads=heads)
    return Backbone(encoder.eval().requires_grad_(False), _rounded(mean), _rounded(std), reading)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Round to the precision of float32: 0.485 for 0.48500001430511475."""
    return tuple(float(f"{value:.7g}") for value in values)


def _cloned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy each tensor, since safetensors does not accept tensors that share memory."""
    return {name: value.clone() for name, value in state.items()}


def _write_folder(folder: Path, config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> None:
    """Make a folder with ``config.json`` and, if there is one, ``preprocessor_config.json``."""
    folder.mkdir()
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _new_path(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``out``, which becomes ``out`` if there is no error."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out, concurrent=True) as temporary:
            yield temporary
            check_new(out)
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {reason_of(error)}") from None
