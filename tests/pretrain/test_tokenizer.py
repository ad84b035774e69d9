import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hardpatch.data.sources import open_source
from hardpatch.errors import TrainingError, UserError
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.models.tokenizer import load_tokenizer
from hardpatch.pretrain import tokenizer as training
from hardpatch.pretrain.tokenizer import TokenizerRun, measure, picture, temperature, uneven_use
from hardpatch.pretrain.tokenizer_run import train_tokenizer

CPU = torch.device("cpu")
SMALL = {"image_size": 32, "vocabulary": 64, "width": 32, "batch_size": 32}


class Silent:
    """Shows nothing."""

    def start(self, step: int, total: int, batch_size: int) -> None: ...
    def advance(self) -> None: ...
    def metrics(self, row: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


def train(run: TokenizerRun) -> tuple[DiscreteVAE, list[dict[str, float]]]:
    return train_tokenizer(open_source("demo:train"), run, device=CPU, workers=0, progress=Silent())


@pytest.fixture(scope="module")
def trained() -> tuple[DiscreteVAE, list[dict[str, float]]]:
    """150 steps on the embedded set."""
    return train(TokenizerRun(150, **SMALL))


def test_training_lowers_the_loss_and_uses_many_tokens(trained: tuple[DiscreteVAE, list[dict[str, float]]]) -> None:
    model, rows = trained
    assert [row["step"] for row in rows] == [50, 100, 150]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["used"] > 32
    assert rows[-1]["perplexity"] > 16
    assert rows[-1]["entropy"] <= 6
    quality = measure(model, open_source("demo:test"), 32, device=CPU, batch_size=64)
    assert quality.images == 1000
    assert quality.perplexity == pytest.approx(2**quality.entropy)
    assert quality.perplexity > 16
    # Far nearer than one gray, or one color an image, would be.
    images = torch.stack([torch.from_numpy(open_source("demo:test").image(i, 3)) for i in range(200)]).float() / 255
    assert quality.error < 0.7 * float((images - images.mean(dim=(1, 2), keepdim=True)).square().mean())


def test_without_the_spreading_term_the_codebook_collapses(
    trained: tuple[DiscreteVAE, list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "USE_WEIGHT", 0.0)
    _, rows = train(TokenizerRun(150, **SMALL))
    assert rows[-1]["perplexity"] < 0.5 * trained[1][-1]["perplexity"]


def test_the_same_seed_trains_the_same_tokenizer() -> None:
    settings = {**SMALL, "batch_size": 8}
    first, again, other = (train(TokenizerRun(3, **settings, seed=seed))[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["codebook"], other["codebook"])


def test_uneven_use() -> None:
    far = 1e4
    one = torch.zeros(2, 8, 3, 3)
    one[:, 5] = far
    assert float(uneven_use(one)) == pytest.approx(math.log(8))
    assert float(uneven_use(torch.zeros(2, 8, 3, 3))) == pytest.approx(0, abs=1e-6)
    # Every patch is sure of its word, and the words come up alike: nothing to complain of.
    sure = far * torch.eye(8).reshape(1, 8, 2, 4)
    assert float(uneven_use(sure)) == pytest.approx(0, abs=1e-6)
    half = far * torch.eye(8)[:, [0, 1, 2, 3, 0, 1, 2, 3]].reshape(1, 8, 2, 4)
    assert float(uneven_use(half)) == pytest.approx(math.log(2))


def test_entropy_and_temperature() -> None:
    assert training._entropy(torch.tensor([1.0, 1.0, 2.0, 0.0])) == pytest.approx(1.5)
    assert temperature(0) == pytest.approx(0.5)
    assert temperature(0.375) == pytest.approx((0.5 + 1 / 16) / 2)
    assert temperature(0.75) == temperature(1) == pytest.approx(1 / 16)


def test_occurrences_count_the_likeliest_words() -> None:
    logits = torch.randn(3, 7, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.bincount(logits.argmax(dim=1).flatten(), minlength=7)
    assert torch.equal(training._occurrences(logits).long(), expected)


def test_a_file_gives_the_tokenizer_back(trained: tuple[DiscreteVAE, list[dict[str, float]]], tmp_path: Path) -> None:
    model, rows = trained
    source, out = open_source("demo:test"), tmp_path / "tokens.safetensors"
    run = TokenizerRun(150, **SMALL)
    quality = measure(model, source, 32, device=CPU, batch_size=64)
    training.write(out, model, run, quality, rows, picture(model, source, 32, device=CPU))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.jsonl", "tokens.png", "tokens.safetensors"]
    with safe_open(out, "pt") as file:
        metadata = json.loads(file.metadata()["hardpatch_tokenizer"])
    assert metadata["kind"] == "discrete_vae"
    assert (metadata["patch_size"], metadata["vocabulary"], metadata["image_size"]) == (8, 64, 32)
    assert metadata["quality"]["used"] == quality.used
    loaded = load_tokenizer(out)
    assert isinstance(loaded, DiscreteVAE)
    assert loaded.vocabulary == 64
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    pixels = torch.stack([torch.from_numpy(source.image(i, 3)).permute(2, 0, 1) for i in range(8)])
    tokens = loaded.tokens(pixels, (4, 4))
    assert torch.equal(tokens, model.tokens(pixels, (4, 4)))
    assert tokens.shape == (8, 16)
    # A student with patches half as large asks for a grid twice as fine.
    assert loaded.tokens(pixels, (8, 8)).shape == (8, 64)


def test_a_place_that_cannot_be_written(trained: tuple[DiscreteVAE, list[dict[str, float]]], tmp_path: Path) -> None:
    model, rows = trained
    source, out = open_source("demo:test"), tmp_path / "gone" / "tokens.safetensors"
    quality = measure(model, source, 32, device=CPU, batch_size=64)
    with pytest.raises(UserError, match=r"--out: cannot write .*tokens\.safetensors"):
        training.write(out, model, TokenizerRun(150), quality, rows, picture(model, source, 32, device=CPU))
    assert not list(tmp_path.iterdir())


def test_divergence_is_told() -> None:
    with pytest.raises(TrainingError, match=r"NaN or infinite between steps 1 and 4; .* an --lr below 1e\+30"):
        train(TokenizerRun(4, **{**SMALL, "batch_size": 8}, lr=1e30))
