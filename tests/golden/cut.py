"""Cut the golden numbers of this folder from the full files: ``python -m tests.golden.cut FULL``.

``FULL`` is a folder that holds the full files, with every input and output for all images. Inputs are left out
here because they can be drawn again, which is checked first. Of the largest outputs only the first image is kept.
"""

import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from tests.golden import FOLDER, NAMES
from tests.golden.inputs import ibot_inputs, model_inputs

FIRST_IMAGE = ("pixels_of_masked", "teacher.latent", "pred")
POSITIONS = ("model.pos_embed", "model.decoder_pos_embed")


def cut(full_folder: Path, folder: Path) -> None:
    """Cut the full files and write the small ones into ``folder``.

    Raises:
        AssertionError: if an input that is drawn again differs from the one in the full file by more than 2e-6.
    """
    for name in NAMES:
        path = full_folder / f"{name}.safetensors"
        full = load_file(path)
        inputs = ibot_inputs() if name == "ibot_loss" else model_inputs(name)
        assert_close(inputs, {key: full[key] for key in inputs}, rtol=0, atol=2e-6)
        kept = {
            key: tensor[:1].clone() if key in FIRST_IMAGE else tensor
            for key, tensor in full.items()
            if key not in inputs and key not in POSITIONS
        }
        with safe_open(path, "pt") as file:
            save_file(kept, folder / path.name, file.metadata())
        if name == "hpm_tiny":  # the three models share them
            save_file({key: full[key] for key in POSITIONS}, folder / "positions.safetensors")


if __name__ == "__main__":
    cut(Path(sys.argv[1]), FOLDER)
