"""Export weights to other libraries, and compare the outputs there with those of this package."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from hardpatch.choices import Architecture
from hardpatch.errors import UserError, shown
from hardpatch.export import hugging_face_outputs, to_hugging_face, to_torchvision
from hardpatch.export.card import LICENSE_NOTE, write_card
from hardpatch.export.file_check import Outputs, compare_files
from hardpatch.export.result import ExportResult, check_new, compare_outputs, new_path, result_of
from hardpatch.export.source import Source, Weights, load_source, rounded
from hardpatch.export.to_onnx import export_onnx
from hardpatch.export.to_reference import reference_arguments, reference_state
from hardpatch.export.to_timm import timm_arguments, timm_config, timm_data, timm_state
from hardpatch.interchange.backbone import Backbone
from hardpatch.interchange.foreign import EXPORTED
from hardpatch.interchange.load import load, training_masks
from hardpatch.methods.mae import MAE
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.paths import user_path
from hardpatch.pickles import save_tensors

OTHER_FILES = (".bin", ".ckpt", ".onnx", ".pt", ".pth")
"""Endings of files of weights that are not what timm's export writes."""
FormatName = Literal["timm", "hf", "hf-mae", "torchvision", "reference", "onnx"]


def export(run: str | Path, to: FormatName, out: str | Path, weights: Weights = "auto", **options: Any) -> ExportResult:
    """Write weights for another library, load them there and compare the outputs: ``hardpatch export``.

    Args:
        run: anything that :func:`hardpatch.load` reads, or a run folder of ``finetune``, ``segment`` or ``detect``.
        to: ``timm`` writes a folder or a ``.safetensors`` file, ``hf``, ``hf-mae`` and ``torchvision`` a folder,
            ``reference`` a ``.pth`` file, ``onnx`` an ``.onnx`` file.
        out: a new file or folder.
        weights: which weights of the run.
        options: see :func:`export_timm`, :func:`export_hugging_face`, :func:`export_torchvision`,
            :func:`export_reference` and :func:`~hardpatch.export.to_onnx.export_onnx`.

    Raises:
        UserError: for weights that cannot be exported, or an ``out`` that exists.
    """
    if to == "hf-mae":
        return export_hugging_face(run, out, weights, form="vit_mae", **options)
    write: dict[str, Callable[..., ExportResult]] = {
        "timm": export_timm,
        "hf": export_hugging_face,
        "torchvision": export_torchvision,
        "reference": export_reference,
        "onnx": export_onnx,
    }
    if to not in write:
        raise UserError(f"to: expected one of {', '.join((*write, 'hf-mae'))}, got {shown(repr(to))}")
    return write[to](run, out, weights, **options)


def export_timm(
    run: str | Path, out: str | Path, weights: Weights = "auto", **architecture: Unpack[Architecture]
) -> ExportResult:
    """Write an encoder or a classifier as a ``.safetensors`` file or a folder that ``timm.create_model`` loads.

    An encoder with relative positions becomes timm's Beit, with rotary ones its Eva, any other its VisionTransformer. A
    folder holds the preprocessing, too, in the ``config.json`` of timm's hub, and a model card. In a file it is
    metadata, which timm does not read.

    Args:
        run: anything that :func:`hardpatch.load` reads, or a fine-tuned run.
        out: a new file that ends in ``.safetensors``, or a new folder.
        weights: which weights of the run.
        architecture: what the file does not say: ``heads``, ``decoder_heads``, ``image_size``.

    Raises:
        UserError: if there is nothing to load, timm cannot hold it, or ``out`` exists or cannot be written.
    """
    import timm

    out = user_path(out, "--out")
    if out.suffix in OTHER_FILES:
        raise UserError(f"--out: expected a file that ends in .safetensors, or a folder, got {out}")
    check_new(out)
    source = load_source(run, weights, **architecture)
    encoder, head = source.encoder, source.head
    name, arguments = timm_arguments(encoder, source.mean, source.std, head)
    config = timm_config(encoder, name, arguments, head)
    notes = source.notes if head is not None else (*source.notes, *_invented(name, arguments))
    with new_path(out) as path:
        file = path
        if out.suffix != ".safetensors":
            _write_folder(path, config)
            file = path / "model.safetensors"
        metadata = {EXPORTED: json.dumps(_described(source)), "timm_config": json.dumps(config)}
        save_tensors(_cloned(timm_state(encoder, head)), file, metadata)
        network: Any
        if file is path:
            network = timm.create_model(name, **arguments, checkpoint_path=str(path))
            keywords = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            code = f'timm.create_model("{name}", {keywords}, checkpoint_path="{out}")'
        else:
            network = timm.create_model(f"local-dir:{path}", pretrained=True)
            code = f'timm.create_model("local-dir:{out}", pretrained=True)'
        network.eval()
        outputs = network if head is not None else _without_registers(network.forward_features, source)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
        compared = compare_outputs(encoder, _own_outputs(source), outputs)
        library = f"timm {timm.__version__}"
        files = compare_files(
            source.backbone, _own_outputs(source), outputs, lambda picture: transform(picture)[None], library
        )
        preprocessing = "timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
        result = result_of(source.backbone, out, code, compared, preprocessing, files, library, notes)
        return result if file is path else _with_card(path, run, result, "timm")


def export_hugging_face(
    run: str | Path,
    out: str | Path,
    weights: Weights = "auto",
    *,
    form: Literal["vit", "vit_mae"] | None = None,
    normalize_pixels: bool = False,
    **architecture: Unpack[Architecture],
) -> ExportResult:
    """Write a folder for ``from_pretrained``: config, weights, preprocessing and a model card.

    Args:
        run: anything that :func:`hardpatch.load` reads, or a fine-tuned run.
        out: a new folder.
        weights: which weights of the run.
        form: ``vit`` for ``ViTModel``, ``vit_mae`` with the decoder of host mae; None is the class that fits exactly.
        architecture: what the file does not say: ``heads``, ``decoder_heads``, ``image_size``.
        normalize_pixels: the targets were normalized per patch, likewise.

    Raises:
        UserError: if there is nothing to load, no class can hold it, or ``out`` exists or cannot be written.
    """
    out = user_path(out, "--out")
    check_new(out)
    own_outputs: Outputs
    load_outputs: Callable[[Path], Outputs]
    if form == "vit_mae":
        backbone, host, ratio = _autoencoder(run, weights, normalize_pixels=normalize_pixels, **architecture)
        model = to_hugging_face.vit_mae(host, ratio)
        own_outputs, load_outputs = hugging_face_outputs.of_vit_mae(host, ratio)
        notes: tuple[str, ...] = ()
        code = f'transformers.ViTMAEForPreTraining.from_pretrained("{out}")'
    else:
        source = load_source(run, weights, **architecture)
        backbone, notes = source.backbone, source.notes
        convert = to_hugging_face.vit if form == "vit" else to_hugging_face.exact
        model = convert(source.encoder, source.head)
        notes += to_hugging_face.changes(source.encoder, model)
        own_outputs, load_outputs = _own_outputs(source), hugging_face_outputs.outputs_of(model.class_name, source)
        options = ", add_pooling_layer=False" if model.class_name in ("ViTModel", "BeitModel") else ""
        code = f'transformers.{model.class_name}.from_pretrained("{out}"{options})'
    encoder, mean, std = backbone[:3]
    config = model.config | to_hugging_face.processor_entries(timm_data(encoder, mean, std))
    with new_path(out) as folder:
        _write_folder(folder, config, to_hugging_face.preprocessor(encoder, mean, std))
        save_tensors(_cloned(model.state), folder / "model.safetensors", {"format": "pt"})
        compared = files = None
        library = "transformers"
        if importlib.util.find_spec("transformers") is not None:
            outputs = load_outputs(folder)
            compared = compare_outputs(encoder, own_outputs, outputs)
            preprocess, library = hugging_face_outputs.preprocessing(folder)
            files = compare_files(backbone, own_outputs, outputs, preprocess, library)
        else:
            notes += ("transformers is not installed, so neither its outputs nor its preprocessing were compared",)
        preprocessing = f'transformers.AutoImageProcessor.from_pretrained("{out}")'
        result = result_of(backbone, out, code, compared, preprocessing, files, library, notes)
        return _with_card(folder, run, result, "transformers")


def _autoencoder(run: str | Path, weights: Weights, **options: Any) -> tuple[Backbone, MAE, float]:
    """Load encoder and reconstructor, and the mask ratio."""
    if weights == "teacher":
        raise UserError("--form: vit_mae has a reconstructor, which a teacher lacks; export the student")
    model = load(run, **options)
    host = model.host
    if not isinstance(host, MAE):
        raise UserError(f"--form: vit_mae is for host mae, {run} has {type(host).__name__}; use --form vit")
    mean, std = rounded(model.mean.tolist()), rounded(model.std.tolist())
    return Backbone(host.encoder, mean, std, model.reading), host, training_masks(run).mask_ratio


def export_torchvision(
    run: str | Path, out: str | Path, weights: Weights = "auto", **architecture: Unpack[Architecture]
) -> ExportResult:
    """Write a folder with the state dict of torchvision's ``VisionTransformer`` and the arguments that build it.

    Args:
        run: anything that :func:`hardpatch.load` reads, or a fine-tuned run.
        out: a new folder.
        weights: which weights of the run.
        architecture: what the file does not say: ``heads``, ``decoder_heads``, ``image_size``.

    Raises:
        UserError: if there is nothing to load, the class cannot hold it, or ``out`` exists or cannot be written.
    """
    import torchvision  # type: ignore[import-untyped]

    out = user_path(out, "--out")
    if out.suffix in (*OTHER_FILES, ".safetensors"):
        raise UserError(f"--out: expected a new folder, got {out}")
    check_new(out)
    source = load_source(run, weights, **architecture)
    encoder, head = source.encoder, source.head
    arguments = to_torchvision.torchvision_arguments(encoder, head)
    notes = (*source.notes, *to_hugging_face.folded(encoder))
    state = to_torchvision.torchvision_state(encoder, head)
    preprocess, preprocessing = to_torchvision.preprocessing(encoder, source.mean, source.std)
    library = f"torchvision {torchvision.__version__}"
    with new_path(out) as folder:
        labels = {} if head is None else {"classes": list(head.classes)}
        content = {"arguments": arguments, "mean": source.mean, "std": source.std, "preprocessing": preprocessing}
        _write_folder(folder, content | labels)
        torch.save(state, folder / to_torchvision.WEIGHTS)
        network = to_torchvision.load_torchvision(arguments, torch.load(folder / to_torchvision.WEIGHTS))
        outputs = to_torchvision.torchvision_outputs(network, head)
        compared = compare_outputs(encoder, _own_outputs(source), outputs)
        files = compare_files(source.backbone, _own_outputs(source), outputs, preprocess, library)
        code = to_torchvision.torchvision_code(arguments, out)
        result = result_of(source.backbone, out, code, compared, preprocessing, files, library, notes)
        return _with_card(folder, run, result, "torchvision")


def export_reference(
    run: str | Path,
    out: str | Path,
    weights: Weights = "auto",
    *,
    normalize_pixels: bool = False,
    **architecture: Unpack[Architecture],
) -> ExportResult:
    """Write a ``.pth`` file in the layout of HPM's and MAE's reference code, and read it again.

    Args:
        run: anything that :func:`hardpatch.load` reads, but no classifier.
        out: a new file that ends in ``.pth``.
        weights: which weights of the run.
        architecture: what the file does not say: ``heads``, ``decoder_heads``, ``image_size``.
        normalize_pixels: the targets were normalized per patch, likewise.

    Raises:
        UserError: if there is nothing to load, the layout cannot hold it, or ``out`` exists or cannot be written.
    """
    out = user_path(out, "--out")
    if out.suffix != ".pth":
        raise UserError(f"--out: expected a file that ends in .pth, got {out}")
    check_new(out)
    source = load_source(run, weights, **architecture)
    if source.head is not None:
        raise UserError("--to: the reference's layout has no classifier; expected --to timm or --to onnx")
    model = load(run, weights, normalize_pixels=normalize_pixels, **architecture)
    state, notes = reference_state(model)
    arguments = reference_arguments(model)
    with new_path(out) as path:
        torch.save({"model": _cloned(state), "args": arguments}, path)
        own = {"heads": arguments["num_heads"], "image_size": source.encoder.image_size}
        own["decoder_heads"] = arguments.get("decoder_num_heads")
        reloaded = load(path, **own)
        compared = compare_outputs(source.encoder, source.encoder, reloaded.encode)
    code = f'torch.load("{out}", weights_only=True)["model"]'
    notes = (*source.notes, *notes, f"not in the weights, but beside them as args: {', '.join(arguments)}")
    notes += ("compared after hardpatch read the file again, since the reference's code is not here",)
    return result_of(source.backbone, out, code, compared, None, None, "hardpatch", notes)


def _own_outputs(source: Source) -> Outputs:
    """Return the function from images to tokens or, of a classifier, to scores."""
    model: Any = source.model
    return source.encoder if source.head is None else model


def _without_registers(outputs: Outputs, source: Source) -> Outputs:
    """Return class token and patch tokens of another library's output."""
    patches = source.encoder.grid[0] * source.encoder.grid[1]

    def tokens(images: Tensor) -> Tensor:
        found = outputs(images)
        return torch.cat([found[:, :1], found[:, -patches:]], dim=1)

    return tokens


def _invented(name: str, arguments: dict[str, Any]) -> tuple[str, ...]:
    if name.startswith("beit") and arguments.get("use_fc_norm"):
        return ("timm's norm after pooling, which these weights do not have, is written as one that only standardizes",)
    return ()


def _described(source: Source) -> dict[str, Any]:
    """Return what tensors do not tell, for whoever reads a file again."""
    encoder = source.encoder
    settings, variant = encoder_settings(encoder), encoder.variant
    values = {key: settings[key] for key in ("image_size", "heads")} | {"mean": source.mean, "std": source.std}
    values |= {"norm_eps": variant.norm_eps, "activation": variant.activation, "rope_theta": variant.rope_theta}
    return values | {"reading": source.reading.to_dict()}


def _with_card(folder: Path, run: str | Path, result: ExportResult, library: str) -> ExportResult:
    """Write the model card into the folder, and say what is left to fill in."""
    write_card(folder, run, result, library)
    return result._replace(notes=(*result.notes, LICENSE_NOTE))


def _cloned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy each tensor, since safetensors does not accept tensors that share memory."""
    return {name: value.detach().clone() for name, value in state.items()}


def _write_folder(folder: Path, config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> None:
    """Make a folder with ``config.json`` and, if there is one, ``preprocessor_config.json``."""
    folder.mkdir()
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
