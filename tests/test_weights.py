"""Weights files whose metadata or tensors are not what they should be: one line, quickly, before a model is built."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hardpatch.errors import UserError
from hardpatch.interchange.backbone import load_backbone
from hardpatch.interchange.load import load
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.models.tokenizer import KIND, METADATA, load_tokenizer
from hardpatch.pickles import load_pickle
from tests.export.runs import run_of
from tests.fuzz import fuzz_settings, mutated, outcome


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weights of a small run."""
    folder = tmp_path_factory.mktemp("runs")
    (saved,) = run_of(folder / "run").rglob("model.safetensors")
    return Path(shutil.copy(saved, folder))


def changed(weights: Path, folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Path:
    """Write a copy of the file after a change of its metadata and tensors."""
    tensors = load_file(weights)
    with safe_open(weights, "pt") as file:
        metadata = json.loads(file.metadata()["hardpatch"])
    result = change(metadata, tensors)
    text = result if isinstance(result, str) else json.dumps(metadata)
    path = folder / "changed.safetensors"
    save_file(tensors, path, {"hardpatch": text})
    return path


def put(metadata: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        metadata = metadata[parent]
    metadata[last] = value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config.model.depth", 10**9, r"depth: expected at most \d+, as the tensors of the file are, got 1e\+09"),
        ("config.model.decoder_depth", 10**9, r"decoder_depth: expected at most"),
        ("config.model.width", 10**12, r"width: expected at most"),
        ("config.model.width", 65_536, r"do not fit its metadata: host\.\S+ should be \[.*65536.*\] and is \["),
        ("config.model.width", 64, r"do not fit its metadata: host\.\S+ should be \[.*64.*\] and is \[.*32"),
        ("config.model.depth", 1, r"blocks\.1\S+ should be absent and is \["),
        ("config.model.depth", 3, r"blocks\.2\S+ should be \[.*\] and is absent"),
        ("config.data.image_size", 10**9, r"image_size: expected 1 to 65,536 pixels, got 1e\+09"),
        ("config", None, r"config: expected sections of settings, got None"),
        ("config", [], r"config: expected sections of settings, got \[\]"),
        ("config.model", 5, r"in its metadata|its metadata does not describe"),
        ("mean", None, r"mean: expected numbers, one for each channel, got None"),
        ("mean", [0.5], r"std: expected one number for each of the 1 channels of mean, got 3"),
        ("std", [0.1, 0.0, 0.1], r"std: expected positive numbers, one for each channel, got \[0\.1, 0\.0"),
        ("std", [0.1, float("nan"), 0.1], r"std: expected positive numbers"),
        ("outputs", 10**13, r"outputs: expected at most"),
        ("reading", {"dtype": 5, "x": 1}, r"its metadata does not describe a network"),
    ],
)
def test_a_wrong_value_is_one_line(weights: Path, tmp_path: Path, name: str, value: Any, message: str) -> None:
    path = changed(weights, tmp_path, lambda metadata, tensors: put(metadata, name, value))
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for work in (load, load_backbone):
        with pytest.raises(UserError, match=message) as error:
            work(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert time.monotonic() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"


def test_a_file_beside_a_manifest_that_does_not_list_it(weights: Path) -> None:
    (saved,) = (weights.parent / "run").rglob("model.safetensors")
    copied = Path(shutil.copy(saved, saved.with_name("copy.safetensors")))
    assert sum(weight.sum() for weight in load(copied).parameters()) != 0
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged \(model\.safetensors has \d"):
        load(saved)
    shutil.copy(copied, saved)


@pytest.mark.parametrize("text", ["", "{", "5", "[1]", '"x"', "[" * 5000, "null"])
def test_metadata_that_is_no_object(weights: Path, tmp_path: Path, text: str) -> None:
    path = changed(weights, tmp_path, lambda metadata, tensors: text)
    with pytest.raises(UserError, match=r"changed\.safetensors: expected metadata as (a )?JSON"):
        load(path)


def test_a_value_that_is_missing(weights: Path, tmp_path: Path) -> None:
    for name in ("mean", "std", "outputs"):
        path = changed(weights, tmp_path, lambda metadata, tensors, name=name: metadata.pop(name))  # type: ignore[misc]
        with pytest.raises(UserError, match=f"its metadata does not describe a network \\(no '{name}'\\)"):
            load(path)


def test_tensors_that_are_others(weights: Path, tmp_path: Path) -> None:
    name = "student.host.encoder.norm.weight"
    for change, message in (
        (lambda tensors: tensors.pop(name), r"norm\.weight should be \[32\] and is absent"),
        (lambda tensors: tensors.update({"student.extra": torch.ones(2)}), r"extra should be absent and is \[2\]"),
        (lambda tensors: tensors.update({name: torch.ones(3)}), r"norm\.weight should be \[32\] and is \[3\]"),
        (lambda tensors: tensors.update({name: torch.ones(32, dtype=torch.int64)}), r"as float32, got I64"),
        (lambda tensors: tensors[name].fill_(float("nan")), r"norm\.weight holds NaN or infinity"),
    ):
        path = changed(weights, tmp_path, lambda metadata, tensors, change=change: change(tensors))  # type: ignore[misc]
        with pytest.raises(UserError, match=message):
            load(path)
    half = changed(weights, tmp_path, lambda metadata, tensors: tensors.update({name: tensors[name].half()}))
    assert load(half).host.encoder.norm.weight.dtype == torch.float32


@pytest.mark.parametrize("setting", ["width", "vocabulary", "patch_size"])
def test_a_tokenizer_of_a_wrong_number(tmp_path: Path, setting: str) -> None:
    values = {"kind": KIND, "patch_size": 4, "vocabulary": 8, "width": 8}
    tensors = DiscreteVAE(patch_size=4, vocabulary=8, width=8).state_dict()
    path = tmp_path / "tokenizer.safetensors"
    for wrong in (10**12, 4096, "x", None, -1):
        save_file(tensors, path, {METADATA: json.dumps(values | {setting: wrong})})
        with pytest.raises(UserError, match=r"tokenizer\.safetensors"):
            load_tokenizer(path)
    save_file(tensors, path, {METADATA: json.dumps(values)})
    assert load_tokenizer(path).vocabulary == 8


def test_a_page_saved_as_weights(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("\n<!DOCTYPE html><html><body>404</body></html>")
    with pytest.raises(UserError, match=r"RUN: .*a\.pth is an HTML page and no weights"):
        load_pickle(tmp_path / "a.pth", "RUN")
    torch.save({"model": Path("x")}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"b\.pth holds a pickle that could run code .* save it anew: torch\.save"):
        load_pickle(tmp_path / "b.pth", "RUN")


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-2, 64), st.sampled_from((10**9, 2**63, 1e308, -1, "x", float("nan")))
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("depth", "x")), inner, max_size=2),
    max_leaves=4,
)
NAMES = ["config", "mean", "std", "outputs", "config.model", "config.data", "config.method", "config.fast", "reading"]
NAMES += [
    f"config.model.{name}" for name in ("width", "depth", "heads", "patch_size", "decoder_width", "decoder_depth")
]
NAMES += ["config.data.image_size", "config.data.channels", "config.method.host", "config.steps", "config.seed"]


@fuzz_settings
@given(name=st.sampled_from(NAMES), value=VALUES)
def test_fuzz_metadata(weights: Path, name: str, value: Any) -> None:
    path = changed(weights, weights.parent, lambda metadata, tensors: put(metadata, name, value))
    outcome(lambda: load(path), path)


@fuzz_settings
@given(data=st.data())
def test_fuzz_changed_bytes(weights: Path, data: st.DataObject) -> None:
    path = weights.parent / "bytes.safetensors"
    path.write_bytes(data.draw(mutated([weights.read_bytes()[:4000], weights.read_bytes()])))
    outcome(lambda: load(path), path)
    outcome(lambda: load_backbone(path), path)
