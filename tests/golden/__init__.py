"""Numbers that the reference implementations computed, and the inputs that they computed them from."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.golden.inputs import SEEDS, ibot_inputs, model_inputs

FOLDER = Path(__file__).parent
NAMES = (*SEEDS, "ibot_loss")


def write_golden(folder: Path) -> Path:
    """Write each committed file, completed by its inputs, into ``folder``: the layout of the full files."""
    positions = load_file(FOLDER / "positions.safetensors")
    for name in NAMES:
        path = FOLDER / f"{name}.safetensors"
        inputs = ibot_inputs() if name == "ibot_loss" else model_inputs(name) | positions
        with safe_open(path, "pt") as file:
            save_file(load_file(path) | inputs, folder / path.name, file.metadata())
    return folder
