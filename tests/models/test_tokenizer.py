import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.models.dalle import DalleTokenizer
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.models.tokenizer import load_tokenizer
from tests.models.small import PIXELS, small_dalle, small_vae


@pytest.mark.parametrize("model", [small_dalle(), small_vae()], ids=["dalle", "vae"])
def test_tokens_do_not_depend_on_autocast(model: DalleTokenizer | DiscreteVAE) -> None:
    plain = model.tokens(PIXELS, (6, 4))
    assert not plain.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.tokens(PIXELS, (6, 4)), plain)


@pytest.mark.parametrize("pixels", [PIXELS.float(), PIXELS[0], PIXELS[:, :1]])
def test_pixels_of_another_type_or_shape(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"pixels: expected uint8 \[B, 3, H, W\], got torch"):
        small_vae().tokens(pixels, (6, 4))


@pytest.mark.parametrize("name", ["encoder.pt", "encoder.safetensors"])
def test_weights_of_dalle_are_recognized(tmp_path: Path, name: str) -> None:
    model = small_dalle()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    loaded = load_tokenizer(tmp_path / name)
    assert isinstance(loaded, DalleTokenizer)
    assert loaded.vocabulary == 40
    assert torch.equal(loaded.tokens(PIXELS, (6, 4)), model.tokens(PIXELS, (6, 4)))


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=r"method\.tokenizer: .*" + re.escape(message)) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "missing.pt", "is no file")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"a": print}))
    refused(tmp_path / "code.pt", "could run code")
    torch.save(small_dalle(), tmp_path / "module.pkl")  # as the encoder was published
    refused(tmp_path / "module.pkl", "could run code and is not opened; expected tensors only")
    torch.save({"blocks.input.w": torch.zeros(3), "args": Path("x")}, tmp_path / "more.pt")
    refused(tmp_path / "more.pt", "could run code")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "is no state dict")
    for name, message in (("text.safetensors", "not a readable safetensors file"), ("text.pt", "")):
        (tmp_path / name).write_text("nothing of the kind")
        refused(tmp_path / name, message)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = dict(small_dalle().state_dict())
    path = tmp_path / "weights.pt"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    refused(path, "is no tokenizer; expected a file of hardpatch tokenizer, or the state dict of DALL-E's encoder")
    torch.save({**state, "decoder": torch.zeros(3)}, path)
    refused(path, "decoder should be absent and is [3]")
    name = "blocks.group_3.block_1.id_path.w"
    torch.save({key: value for key, value in state.items() if key != name}, path)
    refused(path, f"{name} should be [64, 32, 1, 1] and is absent")
    torch.save({**state, name: torch.zeros(5)}, path)
    refused(path, f"{name} should be [64, 32, 1, 1] and is [5]")
    torch.save({**state, "blocks.input.w": torch.tensor(0.0)}, path)
    refused(path, "does not describe a tokenizer")


def test_weights_of_a_run_are_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"student.weight": torch.zeros(3)}, path, {"hardpatch": json.dumps({"step": 3})})
    refused(path, "is no tokenizer")
    save_file({"codebook": torch.zeros(3)}, path, {"hardpatch_tokenizer": json.dumps({"kind": "discrete_vae"})})
    refused(path, "does not describe a tokenizer")
