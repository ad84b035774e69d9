"""Export weights to other libraries, and compare the outputs there with those of this package."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.data.demo import demo_source
from hardpatch.data.reading import RGB, Reading
from hardpatch.errors import UserError
from hardpatch.files import atomic_path
from hardpatch.interchange import to_hugging_face
from hardpatch.interchange.backbone import EXPORTED, Backbone, load_backbone
from hardpatch.interchange.load import load, training_masks
from hardpatch.interchange.to_timm import timm_arguments, timm_state
from hardpatch.methods.mae import MAE
from hardpatch.methods.masking import masked_count, random_mask
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.patches import gather, to_indices
from hardpatch.pickles import save_tensors

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
        to: ``timm`` writes a file, ``hf`` a folder.
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
    """Write the encoder of ``run`` as a ``.safetensors`` file that ``timm.create_model`` loads strictly.

    An encoder with relative positions becomes timm's BEiT, any other its ViT.

    Args:
        run: anything that :func:`~hardpatch.interchange.backbone.load_backbone` reads.
        out: a new file.
        weights: which weights of the run.
        heads: attention heads, if the file does not say.

    Raises:
        UserError: if there is nothing to load, or ``out`` exists or cannot be written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out: expected a file that ends in .safetensors, got {out}")
    check_new(out)
    encoder, mean, std, reading = _backbone(run, weights, heads)
    name, arguments = timm_arguments(encoder, mean, std)
    settings = encoder_settings(encoder)
    metadata = {key: settings[key] for key in ("image_size", "heads")} | {"mean": mean, "std": std}
    metadata["reading"] = reading.to_dict()

    def outputs(path: Path, images: Tensor) -> Tensor:
        import timm

        network: Any = timm.create_model(name, **arguments, checkpoint_path=str(path)).eval()
        return network.forward_features(images)

    with _new_path(out) as path:
        save_tensors(_cloned(timm_state(encoder)), path, {EXPORTED: json.dumps(metadata)})
        difference = _difference(encoder, encoder, lambda images: outputs(path, images))
    keywords = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    code = f'timm.create_model("{name}", {keywords}, checkpoint_path="{out}")'
    return ExportResult(out, code, mean, std, _size(encoder), difference, reading)


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
    out = Path(out)
    check_new(out)
    own_outputs: Callable[[Tensor], Tensor]
    exported_outputs: Callable[[Path, Tensor], Tensor]
    if form == "vit":
        encoder, mean, std, reading = _backbone(run, weights, heads)
        config, state = to_hugging_face.vit(encoder)
        own_outputs, exported_outputs = encoder, _vit_outputs
        code = f'transformers.ViTModel.from_pretrained("{out}", add_pooling_layer=False)'
    else:
        if weights == "teacher":
            raise UserError("--form: vit_mae has a reconstructor, which a teacher lacks; export the student")
        model = load(run, heads=heads, decoder_heads=decoder_heads, normalize_pixels=normalize_pixels)
        host = model.host
        if not isinstance(host, MAE):
            raise UserError(f"--form: vit_mae is for host mae, {run} has {type(host).__name__}; use --form vit")
        encoder, mean, std = host.encoder, _rounded(model.mean.tolist()), _rounded(model.std.tolist())
        reading = model.reading
        ratio, _ = training_masks(run)
        config, state = to_hugging_face.vit_mae(host, ratio)
        mask = _mask(encoder, ratio)
        own_outputs, exported_outputs = partial(_mae_outputs, host, mask), partial(_vit_mae_outputs, mask)
        code = f'transformers.ViTMAEForPreTraining.from_pretrained("{out}")'
    with _new_path(out) as folder:
        folder.mkdir()
        _write_json(folder / "config.json", config)
        _write_json(folder / "preprocessor_config.json", to_hugging_face.preprocessor(encoder, mean, std))
        save_tensors(_cloned(state), folder / "model.safetensors", {"format": "pt"})
        difference = None
        if importlib.util.find_spec("transformers") is not None:
            difference = _difference(encoder, own_outputs, partial(exported_outputs, folder))
    return ExportResult(out, code, mean, std, _size(encoder), difference, reading)


def check_new(out: Path) -> None:
    """Check that ``out`` does not exist.

    Raises:
        UserError: if it does.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out: {out} exists and is never overwritten; choose a new name")


@torch.no_grad()
def _difference(
    encoder: Encoder, own_outputs: Callable[[Tensor], Tensor], exported_outputs: Callable[[Tensor], Tensor]
) -> OutputDifference:
    """Compare the outputs for the same images.

    Raises:
        RuntimeError: if they differ by more than rounding.
    """
    noise = torch.randn(1, encoder.channels, *_size(encoder), generator=torch.Generator().manual_seed(0))
    real = None
    if encoder.channels in (1, 3):
        source = demo_source("test")
        pixels = np.stack([source.image(i, Reading(encoder.channels)) for i in range(REAL_IMAGES)])
        real = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        real = F.interpolate(real, size=_size(encoder), mode="bicubic", antialias=True)
    images = noise if real is None else torch.cat([noise, real])
    expected = own_outputs(images)
    difference = (exported_outputs(images) - expected).abs().flatten(1).amax(dim=1).tolist()
    largest = expected.abs().max().item()
    result = OutputDifference(difference[0], None if real is None else max(difference[1:]), largest)
    if not max(difference) <= TOLERANCE * largest:
        raise RuntimeError(f"the exported model gives other outputs, nothing was written: {result}")
    return result


def _vit_outputs(folder: Path, images: Tensor) -> Tensor:
    with _quiet_transformers() as transformers:
        model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return model(images).last_hidden_state


def _mae_outputs(host: MAE, mask: Tensor, images: Tensor) -> Tensor:
    """Concatenate latent and predictions of the masked patches: ``[B, ...]``."""
    patches = to_indices(mask.expand(len(images), -1))
    latent = host.encode(images, patches)
    prediction = host.reconstruct(latent, host.decoder_tokens(latent, patches), patches)
    return torch.cat([latent.flatten(1), prediction.flatten(1)], dim=1)


def _vit_mae_outputs(mask: Tensor, folder: Path, images: Tensor) -> Tensor:
    with _quiet_transformers() as transformers:
        model = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
    mask = mask.expand(len(images), -1)
    # the library keeps the patches with the least noise, in the order of the noise
    noise = mask.float() * mask.shape[1] + torch.arange(mask.shape[1])
    latent = model.vit(images, noise=noise).last_hidden_state
    prediction = gather(model(images, noise=noise).logits, to_indices(mask).masked)
    return torch.cat([latent.flatten(1), prediction.flatten(1)], dim=1)


@contextmanager
def _quiet_transformers() -> Iterator[Any]:
    import transformers

    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        if shown:
            logging.enable_progress_bar()


def _mask(encoder: Encoder, ratio: float) -> Tensor:
    patches = encoder.grid[0] * encoder.grid[1]
    return random_mask(torch.rand(1, patches, generator=torch.Generator().manual_seed(0)), masked_count(patches, ratio))


def _backbone(run: str | Path, weights: Literal["student", "teacher"], heads: int | None) -> Backbone:
    encoder, mean, std, reading = load_backbone(run, weights, heads=heads)
    return Backbone(encoder.eval().requires_grad_(False), _rounded(mean), _rounded(std), reading)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Round to the precision of float32: 0.485 for 0.48500001430511475."""
    return tuple(float(f"{value:.7g}") for value in values)


def _size(encoder: Encoder) -> tuple[int, int]:
    return encoder.grid[0] * encoder.patch_size, encoder.grid[1] * encoder.patch_size


def _cloned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy each tensor, since safetensors does not accept tensors that share memory."""
    return {name: value.clone() for name, value in state.items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _new_path(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``out``, which becomes ``out`` if there is no error."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out, concurrent=True) as temporary:
            yield temporary
            check_new(out)
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {error.strerror or error}") from None
