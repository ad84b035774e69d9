from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """uint8 [512, 512, 3]."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as file:
        return np.array(file.convert("RGB"))
