"""ONNX files of an encoder, a loss predictor, a classifier or a segmenter, each checked in onnxruntime against ours."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from hardpatch.choices import Architecture
from hardpatch.errors import UserError
from hardpatch.export.result import ExportResult, check_new, example_images, new_files
from hardpatch.export.source import Weights, check_average, load_source, rounded
from hardpatch.interchange.backbone import Backbone
from hardpatch.interchange.finetuned import read_finetuned
from hardpatch.interchange.load import read_newest
from hardpatch.paths import user_path
from hardpatch.segment.file import load_segmenter

PartName = Literal["encoder", "predictor", "classifier", "segmenter"]
BATCHES = (1, 7)
"""Batch sizes at which an exported file is compared"""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest output if that is above 1"""
OUTPUTS: dict[PartName, str] = {
    "encoder": "tokens [B, 1 + N, D], class token first",
    "predictor": "difficulty [B, N], the predicted loss of each patch",
    "classifier": "scores [B, classes]",
    "segmenter": "scores [B, classes, H, W] of each pixel",
}
"""Output of each part; its first word is the name in the graph"""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Graph(nn.Module):
    """Part of a network with one input and one output."""

    def __init__(self, network: nn.Module, part: PartName) -> None:
        super().__init__()
        self.network, self.part = network, part

    @property
    def dynamic(self) -> bool:
        """True if it takes images of any size."""
        return self.part != "segmenter"

    def forward(self, images: Tensor) -> Tensor:
        """Compute the part's output of normalized images ``[B, C, H, W]``."""
        network: Any = self.network
        if self.part == "predictor":
            return network.predict_loss(images)
        if self.part == "segmenter":
            logits = network(images).main
            return nn.functional.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)
        return network(images)


class Checked(NamedTuple):
    """Largest differences between onnxruntime and this package."""

    batches: dict[str, float]
    """by batch size and, if it was another one, image size"""
    largest: float
    """largest output"""


def export_onnx(
    run: str | Path,
    out: str | Path,
    weights: Weights = "auto",
    *,
    part: PartName | None = None,
    **architecture: Unpack[Architecture],
) -> ExportResult:
    """Write an ``.onnx`` file with dynamic batch, and beside it ``<name>.parity.json`` with the differences to ours.

    The image size is dynamic as well, but for segmenters. Images are normalized before. Weights of more than 1.5 GB
    come to lie in ``<name>.onnx.data``.

    Args:
        run: anything that :func:`hardpatch.load` reads, or a run folder of ``finetune`` or ``segment``.
        out: a new file that ends in ``.onnx``.
        weights: which weights of the run.
        part: ``encoder``, ``predictor``, ``classifier`` or ``segmenter``; None is the fine-tuned network, or the
            encoder of other weights.
        architecture: what the file does not say: ``heads``, ``decoder_heads``, ``image_size``.

    Raises:
        UserError: if there is no such part, or ``out`` exists or cannot be written.
        RuntimeError: if onnxruntime computes other outputs.
    """
    out = user_path(out, "--out")
    if out.suffix != ".onnx":
        raise UserError(f"--out: expected a file that ends in .onnx, got {out}")
    report, weights_beside = f"{out.stem}.parity.json", out.with_name(f"{out.name}.data")
    for path in (out, out.with_name(report), weights_beside):
        check_new(path)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx: needs {', '.join(missing)}, not installed; run: pip install 'hardpatch[onnx]'")
    chosen = _choose(run, weights, part, architecture)
    graph, backbone = chosen.graph.eval().requires_grad_(False), chosen.backbone
    with new_files(out) as path:
        _write(chosen, path)
        checked = _check(chosen, path)
        lines = [f"output: {OUTPUTS[graph.part]}", *chosen.notes, *_lines(checked)]
        if path.with_name(weights_beside.name).exists():
            lines.append(
                f"the weights are in {weights_beside.name}, which belongs beside it: one file holds 2 GB at most"
            )
        content = {"differences": checked.batches, "largest_output": checked.largest, "report": lines}
        path.with_name(report).write_text(json.dumps(content | chosen.metadata(), indent=2) + "\n", encoding="utf-8")
    code = f'onnxruntime.InferenceSession("{out}")'
    return ExportResult(
        *(out, code, backbone.mean, backbone.std, chosen.size, None, None, None),
        reading=backbone.reading,
        library=_versions(),
        notes=tuple(lines),
    )


class Chosen(NamedTuple):
    """Part of a network that a file is written of."""

    graph: Graph
    backbone: Backbone
    size: tuple[int, int]
    """(height, width) of the images, in pixels"""
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """lines about what is left out"""

    def metadata(self) -> dict[str, Any]:
        """Return what the file says of itself."""
        encoder, mean, std, reading = self.backbone
        values: dict[str, Any] = {"part": self.graph.part, "image_size": list(self.size), "mean": list(mean)}
        values |= {"std": list(std), "reading": reading.to_dict(), "patch_size": encoder.patch_size}
        return values | ({"classes": list(self.classes)} if self.classes else {})


def _choose(run: str | Path, weights: Weights, part: PartName | None, architecture: Architecture) -> Chosen:
    """Load the part that is exported; None is the fine-tuned network, or the encoder of other weights."""
    found = read_newest(run, read_finetuned)
    kind = None if found is None else found.kind
    own: PartName = kind if kind == "classifier" or kind == "segmenter" else "encoder"
    part = part or own
    if found is not None and part == "segmenter" == own:
        check_average(run, found, weights)
        return _segmenter(run)
    source = load_source(run, weights, **architecture)
    backbone, size = source.backbone, source.encoder.image_size
    if part == "classifier" and source.head is not None:
        return Chosen(Graph(source.model, part), backbone, size, source.head.classes, source.notes)
    if part == "predictor" and getattr(source.model, "has_predictor", False):
        return Chosen(Graph(source.model, part), backbone, size)
    if part != "encoder":
        name = "loss predictor" if part == "predictor" else part
        raise UserError(f"--part {part}: {run} has no {name}; expected --part {own}")
    notes = source.notes
    if kind == "classifier":
        notes = ("only the encoder of the classifier goes, without its head",)
    return Chosen(Graph(source.encoder, part), backbone, size, notes=notes)


def _segmenter(run: str | Path) -> Chosen:
    network, classes, inference = load_segmenter(run)
    mean, std = (rounded(values.flatten().tolist()) for values in (network.mean, network.std))
    backbone = Backbone(network.encoder, mean, std, network.reading)
    size = inference.window if inference.mode == "slide" else network.encoder.image_size
    notes = (
        f"the run evaluates by {inference.mode}, on images whose shorter side is resized to {inference.short_side} px; "
        "the file is for one window",
        f"the image size is fixed to {size[0]} x {size[1]}: the head pools to grids of fixed sizes",
    )
    return Chosen(Graph(network, "segmenter"), backbone, size, classes, notes)


def _write(chosen: Chosen, path: Path) -> None:
    from torch.export import Dim

    graph, encoder = chosen.graph, chosen.backbone.encoder
    shapes: dict[int, Any] = {0: Dim("batch", min=1, max=1 << 16)}
    if graph.dynamic:
        patch = encoder.patch_size
        shapes |= {2: patch * Dim("rows", min=1, max=1 << 12), 3: patch * Dim("columns", min=1, max=1 << 12)}
    images = torch.randn(2, encoder.channels, *chosen.size, generator=torch.Generator().manual_seed(0))
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            dynamic_shapes={"images": shapes},
            input_names=["images"],
            output_names=[OUTPUTS[graph.part].split()[0]],
            verbose=False,
        )
        program.model.metadata_props["hardpatch"] = json.dumps(chosen.metadata())
        program.save(str(path))


@torch.no_grad()
def _check(chosen: Chosen, path: Path) -> Checked:
    """Compare outputs at several batch sizes and, where the size is dynamic, at another image size.

    Raises:
        RuntimeError: if they differ by more than :data:`TOLERANCE`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    graph, encoder, built = chosen.graph, chosen.backbone.encoder, chosen.size
    cases, patch = [(batch, built) for batch in BATCHES], encoder.patch_size
    if graph.dynamic:
        cases += [(2, (built[0] + patch, built[1] + 2 * patch))]
    found, largest = {}, 0.0
    for batch, sides in cases:
        images = example_images(encoder, sides)
        images = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
        expected = graph(images)
        output = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        largest = max(largest, expected.abs().max().item())
        name = f"batch {batch}" + ("" if sides == built else f", {sides[0]} x {sides[1]} px")
        found[name] = (output - expected).abs().max().item()
    if not max(found.values()) <= TOLERANCE * max(1.0, largest):
        raise RuntimeError(f"onnxruntime computes other outputs, nothing was written: {found} of {largest:.2g}")
    return Checked(found, largest)


def _lines(checked: Checked) -> list[str]:
    differences = "; ".join(f"{name}: {value:.1e}" for name, value in checked.batches.items())
    return [f"largest difference in {_versions()}: {differences} (outputs up to {checked.largest:.2g})"]


def _versions() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch's exporter says of its own progress and of operators that are not ours."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
