"""Features of image files in timm and transformers, with the preprocessing of those libraries, against ours.

    python benchmarks/export_files.py RUN IMAGES [--images N]

Exports RUN, an encoder of images in color, to a temporary folder, and compares the features of every file in IMAGES.
Differences are relative to the largest feature of the image. BitImageProcessor is what an export names for users of
transformers without timm.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from PIL import Image

from hardpatch.data.bands import as_read
from hardpatch.data.sources import open_source
from hardpatch.export.file_check import own_preprocessing
from hardpatch.export.run import export_hugging_face, export_timm
from hardpatch.interchange.backbone import load_backbone

Features = Callable[[Image.Image], torch.Tensor]


def exported(run: str, folder: Path) -> dict[str, Features]:
    """Export a run. Returns the function from an image to ``[1, N, D]`` of each preprocessing."""
    transformers.utils.logging.disable_progress_bar()
    export_timm(run, folder / "timm")
    export_hugging_face(run, folder / "hf")
    network: Any = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    vit = transformers.ViTModel.from_pretrained(folder / "hf", add_pooling_layer=False).eval()
    processors: dict[str, Any] = {
        "transformers, AutoImageProcessor": transformers.AutoImageProcessor,
        "transformers, BitImageProcessor": transformers.BitImageProcessor,
    }

    def of_processor(processor: Any) -> Features:
        return lambda picture: vit(**processor(picture, return_tensors="pt")).last_hidden_state

    return {"timm": lambda picture: network.forward_features(transform(picture)[None])} | {
        name: of_processor(processor.from_pretrained(folder / "hf")) for name, processor in processors.items()
    }


@torch.no_grad()
def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("images")
    parser.add_argument("--images", dest="limit", type=int, default=200, help="images, spread over the set")
    options = parser.parse_args()
    model = load_backbone(options.run)
    encoder = model.encoder.eval()
    source = as_read(open_source(options.images), model.reading)
    with tempfile.TemporaryDirectory() as folder:
        libraries = exported(options.run, Path(folder))
        differences: dict[str, list[float]] = {name: [] for name in libraries}
        for k in np.linspace(0, len(source) - 1, min(options.limit, len(source))).round().astype(int):
            data = source.encoded(int(k))
            assert data is not None, "expected files"
            features = encoder(own_preprocessing(data, model))
            path = Path(folder, "image")
            path.write_bytes(data)
            picture = Image.open(path).convert("RGB")
            for name, function in libraries.items():
                differences[name].append(((function(picture) - features).abs().max() / features.abs().max()).item())
    title = "{} x {} px, {} images".format(*encoder.image_size, len(differences["timm"]))
    print(f"| {title} | median | largest | above 1e-4 |\n|---|---|---|---|")
    for name, values in differences.items():
        print(f"| {name} | {np.median(values):.1g} | {max(values):.1g} | {np.mean(np.array(values) > 1e-4):.0%} |")


if __name__ == "__main__":
    main()
