import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hardpatch.data.sources import open_source
from hardpatch.errors import TrainingError, UserError
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.models.tokenizer import FILE, METADATA, load_tokenizer
from hardpatch.pretrain import tokenizer as training
from hardpatch.pretrain.tokenizer import Quality, entropy, evenly_spread, measure, temperature, uneven_use, word_counts
from hardpatch.pretrain.tokenizer_run import TokenizerResult, reconstructions, train_tokenizer, write_tokenizer
from hardpatch.pretrain.tokenizer_settings import TokenizerSettings
from hardpatch.train.metrics import read_metrics

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"image_size": 32, "vocabulary": 64, "width": 32, "batch_size": 32}


def train(folder: Path, **settings: Any) -> TokenizerResult:
    return train_tokenizer("demo:train", folder, **{**SMALL, "workers": 0, "device": "cpu", **settings})


def load(folder: Path) -> DiscreteVAE:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, DiscreteVAE)
    return tokenizer


def pixels(name: str, indices: Sequence[int]) -> torch.Tensor:
    """Images of the embedded set, uint8 ``[B, 3, H, W]``."""
    source = open_source(name)
    return torch.stack([torch.from_numpy(source.image(i)).permute(2, 0, 1) for i in indices])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TokenizerResult:
    """150 steps on the embedded set."""
    return train(tmp_path_factory.mktemp("tokenizer") / "run", steps=150)


def test_training_lowers_the_loss_and_uses_many_tokens(trained: TokenizerResult) -> None:
    rows = read_metrics(trained.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 5, 10, 20, 50, 100, 150]
    assert rows[-1]["loss"] < 0.7 * sum(row["loss"] for row in rows[:6]) / 6
    assert rows[-1]["used"] > 32
    assert rows[-1]["perplexity"] > 16
    assert rows[-1]["entropy"] <= 6
    quality = measure(load(trained.folder), open_source("demo:test"), 32, device=CPU, batch_size=64)
    assert quality.images == 1000
    assert quality.perplexity == pytest.approx(2**quality.entropy)
    assert quality.perplexity > 16
    # Much closer than one gray value, or one color for each image, would be.
    images = pixels("demo:test", range(200)).float() / 255
    assert quality.error < 0.7 * float((images - images.mean(dim=(2, 3), keepdim=True)).square().mean())


def test_without_the_spreading_term_the_codebook_collapses(
    trained: TokenizerResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "USE_WEIGHT", 0.0)
    collapsed = train(tmp_path / "run", steps=150)
    perplexities = [read_metrics(run.folder / "metrics.jsonl")[-1]["perplexity"] for run in (collapsed, trained)]
    assert perplexities[0] < 0.5 * perplexities[1]


def test_the_same_seed_trains_the_same_tokenizer(tmp_path: Path) -> None:
    states = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        states.append(load(train(tmp_path / name, steps=3, batch_size=8, seed=seed).folder).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["codebook"], other["codebook"])


def test_uneven_use() -> None:
    large = 1e4
    one = torch.zeros(2, 8, 3, 3)
    one[:, 5] = large
    assert float(uneven_use(one)) == pytest.approx(math.log(8))
    assert float(uneven_use(torch.zeros(2, 8, 3, 3))) == pytest.approx(0, abs=1e-6)
    # Each patch is certain of its word, and all words occur equally often: the term is zero.
    certain = large * torch.eye(8).reshape(1, 8, 2, 4)
    assert float(uneven_use(certain)) == pytest.approx(0, abs=1e-6)
    half = large * torch.eye(8)[:, [0, 1, 2, 3, 0, 1, 2, 3]].reshape(1, 8, 2, 4)
    assert float(uneven_use(half)) == pytest.approx(math.log(2))


def test_entropy_and_temperature() -> None:
    assert entropy(torch.tensor([1.0, 1.0, 2.0, 0.0])) == pytest.approx(1.5)
    assert temperature(0) == pytest.approx(0.5)
    assert temperature(0.375) == pytest.approx((0.5 + 1 / 16) / 2)
    assert temperature(0.75) == temperature(1) == pytest.approx(1 / 16)


def test_quality_in_other_units() -> None:
    quality = Quality(images=10, error=0.001, used=7, entropy=2.5)
    assert quality.psnr == pytest.approx(30)
    expected = {"images": 10, "error": 0.001, "used": 7, "entropy": 2.5, "psnr": 30, "perplexity": 2**2.5}
    assert quality.to_dict() == pytest.approx(expected)
    assert evenly_spread(10, 4) == [0, 2, 5, 7]
    assert evenly_spread(3, 4) == [0, 1, 2]


def test_word_counts_are_of_the_likeliest_words() -> None:
    logits = torch.randn(3, 7, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.bincount(logits.argmax(dim=1).flatten(), minlength=7)
    assert torch.equal(word_counts(logits).long(), expected)


def test_a_run_folder_holds_the_tokenizer(trained: TokenizerResult) -> None:
    folder = trained.folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert {FILE, "config.yaml", "environment.json", "README.md", "result.json", "metrics.jsonl", "log.txt"} <= names
    assert trained.pictures == (folder / "pictures" / "reconstructions.png", folder / "pictures" / "curves.png")
    assert not any("partial" in name for name in names)
    assert trained.finished
    assert trained.quality is not None
    assert trained.result is not None
    assert json.loads((folder / "result.json").read_text()) == trained.result
    assert trained.result["quality"] == trained.quality.to_dict()
    with Image.open(trained.pictures[0]) as picture:
        assert picture.size == (8 * 128, 2 * 128)  # 32 px enlarged four times; the reconstructions are below
    with safe_open(folder / FILE, "pt") as file:
        metadata = json.loads(file.metadata()[METADATA])
    assert metadata["kind"] == "discrete_vae"
    assert (metadata["patch_size"], metadata["vocabulary"], metadata["image_size"]) == (8, 64, 32)
    assert metadata["quality"]["used"] == trained.quality.used


def test_a_written_tokenizer_loads_with_equal_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DiscreteVAE(patch_size=8, vocabulary=64, width=32).eval()
    path = tmp_path / "tokens.safetensors"
    write_tokenizer(path, model, TokenizerSettings(**SMALL), Quality(images=1, error=0.1, used=1, entropy=0.0))
    assert [file.name for file in tmp_path.iterdir()] == ["tokens.safetensors"]
    loaded = load_tokenizer(path)
    assert isinstance(loaded, DiscreteVAE)
    assert loaded.vocabulary == 64
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = pixels("demo:test", range(8))
    tokens = loaded.tokens(images, (4, 4))
    assert torch.equal(tokens, model.tokens(images, (4, 4)))
    assert tokens.shape == (8, 16)
    # A student with patches of half the size needs a grid twice as fine.
    assert loaded.tokens(images, (8, 8)).shape == (8, 64)


def test_the_picture_shows_originals_above_reconstructions(trained: TokenizerResult) -> None:
    source = open_source("demo:test")
    picture = np.array(reconstructions(load(trained.folder), source, 32, device=CPU))
    first = source.image(0).repeat(4, axis=0).repeat(4, axis=1)
    original, reconstruction = picture[:128, :128], picture[128:, :128]
    assert np.array_equal(original, first)
    assert 0 < np.abs(reconstruction.astype(float) - first).mean() < 64


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^--out: expected a folder that can be written, got .*run: Not a directory$"):
        train(tmp_path / "file" / "run", steps=1, batch_size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_divergence_is_reported_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"NaN or infinite in 1 of the last 100 steps.*--lr_factor 0\.5"):
        train(tmp_path / "run", steps=4, batch_size=8, lr=1e30, bad_steps=0)
    assert not (tmp_path / "run" / FILE).exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*"))
