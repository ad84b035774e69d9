"""What a run takes over from existing weights, exactly, and how it learns from there."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

import hardpatch
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig
from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM
from hardpatch.models.positions import sincos_positions
from hardpatch.pretrain import best
from hardpatch.pretrain.continuation import take_weights
from hardpatch.pretrain.encoder_rate import parameter_groups
from hardpatch.pretrain.facts import Facts, facts
from hardpatch.pretrain.folder import configure
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.worse import getting_worse
from hardpatch.train.freeze import freeze
from tests.export.runs import run_of

SIZE = (16, 16)
DECODER = ("--model.decoder_width=16", "--model.decoder_depth=1", "--model.decoder_heads=2")


def configured(weights: Path, *changes: str) -> RunConfig:
    run, _ = configure(None, None, "demo:train", None, [f"--init={weights}", "--steps=100", *changes])
    return run


def started(run: RunConfig, channels: int = 3) -> tuple[HPM, tuple[str, ...], bool]:
    model = initial_model(run, [0.5] * channels, [0.5] * channels)
    taken = take_weights(model, run)
    return model.eval(), taken.lines, taken.has_new_parts


def images(channels: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
@pytest.mark.parametrize("host", ["mae", "simmim", "ibot", "beit"])
def test_a_run_goes_on_exactly_where_it_was(tmp_path: Path, host: str) -> None:
    folder = run_of(tmp_path, host)
    run = configured(folder, "--data.image_size=16", f"--method.host={host}")
    model, lines, has_new_parts = started(run)
    start = hardpatch.load(folder)
    mask = torch.arange(16).expand(3, -1) % 4 > 0
    assert not has_new_parts
    assert torch.equal(model.encode(images(), mask), start.encode(images(), mask))
    assert torch.equal(model.predict_loss(images()), start.predict_loss(images()))
    assert torch.equal(
        model.reconstruct(model.encode(images(), mask), mask), start.reconstruct(start.encode(images(), mask), mask)
    )
    assert all("new" not in line for line in lines)


def hugging_face(name: str) -> Any:
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"use_shared_relative_position_bias": True} if name == "BeitModel" else {}
    config = getattr(transformers, name.replace("Model", "Config"))(**shape, **more, intermediate_size=48)
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def timm_vit(**changes: Any) -> Any:
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = timm.models.VisionTransformer(**settings | changes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
@pytest.mark.parametrize("host", ["mae", "simmim", "ibot"])
@pytest.mark.parametrize(
    "name", ["timm", "ViTModel", "Dinov2WithRegistersModel", "DINOv3ViTModel", "BeitModel", "relative"]
)
def test_encoders_of_other_libraries(tmp_path: Path, host: str, name: str) -> None:
    torch.manual_seed(0)
    if name == "timm":
        save_file(timm_vit().state_dict(), tmp_path / "model.safetensors")
    elif name == "relative":
        network = timm.models.Beit(
            img_size=16,
            patch_size=4,
            embed_dim=32,
            depth=2,
            num_heads=2,
            num_classes=0,
            init_values=0.1,
            use_rel_pos_bias=True,
            use_abs_pos_emb=False,
        )
        save_file(network.state_dict(), tmp_path / "model.safetensors")
    else:
        hugging_face(name).save_pretrained(tmp_path)
    arguments = ("--init.heads=2", "--data.image_size=16", f"--method.host={host}", *DECODER)
    if name in ("relative", "BeitModel") and host == "mae":
        with pytest.raises(UserError, match="relative"):
            started(configured(tmp_path, *arguments))
        return
    run = configured(tmp_path, *arguments)
    assert (run.model.width, run.model.depth, run.model.heads, run.model.patch_size) == (32, 2, 2, 4)
    model, lines, has_new_parts = started(run)
    assert has_new_parts
    assert any("loss predictor: new" in line for line in lines)
    expected = hardpatch.load(tmp_path, heads=2, image_size=SIZE).encode(images())
    assert torch.equal(model.encode(images()), expected)
    # what a checkpoint holds builds the same model without the file
    again = initial_model(run, [0.5] * 3, [0.5] * 3)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval().encode(images()), expected)


@torch.no_grad()
def test_other_images_than_the_weights_were_trained_on(tmp_path: Path) -> None:
    save_file(timm_vit().state_dict(), tmp_path / "vit.safetensors")
    changes = ["--init.heads=2", "--data.image_size=[16,32]", "--model.patch_size=8", "--data.channels=4", *DECODER]
    model, lines, _ = started(configured(tmp_path / "vit.safetensors", *changes), channels=4)
    assert model.grid == (2, 4)
    assert model.encode(images(4, (16, 32))).shape == (3, 9, 32)
    told = "\n".join(lines)
    for line in (
        "3 channels became 4",
        "patches of 4 px became 8 px",
        "positions of 4 x 4 patches were interpolated to 2 x 4",
    ):
        assert line in told


@torch.no_grad()
def test_a_decoder_among_the_weights_is_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
    sizes: dict[str, Any] = {**shape, **decoder, "intermediate_size": 48, "decoder_intermediate_size": 64}
    config = transformers.ViTMAEConfig(**sizes)
    network = transformers.ViTMAEForPreTraining(config)
    network.decoder.decoder_pos_embed.data[0] = torch.cat([torch.zeros(1, 16), sincos_positions(16, (4, 4))])
    network.save_pretrained(tmp_path)
    run = configured(tmp_path, "--data.image_size=16")
    assert (run.model.decoder_width, run.model.decoder_depth, run.model.decoder_heads) == (16, 2, 2)
    model, lines, has_new_parts = started(run)
    assert has_new_parts
    assert "--init: reconstructor: taken over" in lines
    assert "--init: loss predictor: new, with random weights" in lines
    start, mask = hardpatch.load(tmp_path), torch.arange(16).expand(3, -1) % 4 > 0
    reconstructed = [each.reconstruct(each.encode(images(), mask), mask) for each in (model, start)]
    assert_close(*reconstructed, rtol=1e-4, atol=1e-4)  # the norms of a decoder of Hugging Face add another epsilon
    plain = configured(tmp_path, "--data.image_size=16", "--method.predicting_loss=none")
    assert not started(plain)[2]
    # sine-cosine positions of another precision are no trained ones; any others are, and then the decoder has to learn
    for noise, positions in ((3e-7, "sincos"), (0.1, "learned")):
        state = load_file(tmp_path / "model.safetensors")
        sincos = torch.cat([torch.zeros(1, 16), sincos_positions(16, (4, 4))])
        state["decoder.decoder_pos_embed"] = (sincos + noise * torch.randn(17, 16))[None]
        encoded = torch.cat([torch.zeros(1, 32), sincos_positions(32, (4, 4)) + noise * torch.randn(16, 32)])
        state["vit.embeddings.position_embeddings"] = encoded[None]
        save_file(state, tmp_path / "model.safetensors")
        plain = configured(tmp_path, "--data.image_size=16", "--method.predicting_loss=none")
        assert plain.model.positions == positions
        assert started(plain)[2] == (positions == "learned")


def test_settings_that_do_not_go_with_the_weights(tmp_path: Path) -> None:
    save_file(timm_vit().state_dict(), tmp_path / "vit.safetensors")
    file, heads = tmp_path / "vit.safetensors", "--init.heads=2"
    for changes, message in (
        ([heads, "--model.depth=3"], "model.depth: the weights of --init decide it, 2; leave it out, got 3"),
        ([heads, "--model.size=base"], "model.size: the weights of --init decide it"),
        ([heads, "--init.frozen_blocks=3"], "init.frozen_blocks: expected at most the 2 blocks"),
        (["--init.heads=5"], "heads: expected a divisor"),
        ([heads, "--init.trained_size=[8,8]"], "correct --init.trained_size"),
    ):
        with pytest.raises(UserError) as error:
            configured(file, *changes)
        assert message in str(error.value)
    with pytest.raises(UserError, match=r"--init: .*does not exist"):
        configured(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match=r"init.frozen: expected with --init WEIGHTS"):
        configure("demo", None, None, None, ["--init.frozen=0.5"])


@torch.no_grad()
def test_heads_of_the_model_say_what_a_file_does_not(tmp_path: Path) -> None:
    save_file(timm_vit().state_dict(), tmp_path / "vit.safetensors")
    run = configured(tmp_path / "vit.safetensors", "--heads=2", "--data.image_size=16", *DECODER)
    assert (run.init.heads, run.model.heads) == (2, 2)
    expected = hardpatch.load(tmp_path / "vit.safetensors", heads=2).encode(images())
    assert torch.equal(started(run)[0].encode(images()), expected)


def test_a_plain_host_takes_over_no_part_of_a_loss_predictor(tmp_path: Path) -> None:
    start = run_of(tmp_path, model={"decoder_depth": 3}, fast={"shared_blocks": -1})
    assert configured(start, "--data.image_size=16").fast.shared_blocks == -1
    plain = configured(start, "--data.image_size=16", "--method.predicting_loss=none")
    assert (plain.fast.shared_blocks, plain.model.decoder_depth) == (0, 3)


def test_learning_rates_of_the_parts(tmp_path: Path) -> None:
    run = configured(run_of(tmp_path), "--data.image_size=16", "--init.encoder_lr=0.5", "--init.layer_decay=0.8")
    model, _, _ = started(run)
    scales = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, run):
        for parameter in group["params"]:
            scales[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"], group["encoder"])
    assert scales.keys() == dict(model.named_parameters()).keys()
    assert scales["host.encoder.norm.weight"] == (0.5, 0.0, True)
    assert scales["host.encoder.blocks.1.mlp.fc1.weight"] == pytest.approx((0.5 * 0.8, 0.05, True))
    assert scales["host.encoder.blocks.0.mlp.fc1.bias"] == pytest.approx((0.5 * 0.8**2, 0.0, True))
    assert scales["host.encoder.patch_embed.proj.weight"] == pytest.approx((0.5 * 0.8**3, 0.05, True))
    assert scales["host.encoder.cls_token"] == pytest.approx((0.5 * 0.8**3, 0.0, True))
    assert scales["predictor.head.weight"] == (1.0, 0.05, False)
    freeze(model.host.encoder, 1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name in scales if name not in trained}
    assert frozen == {
        name
        for name in scales
        if name.startswith(("host.encoder.blocks.0.", "host.encoder.patch_embed.", "host.encoder.cls_token"))
    }
    assert sum(len(group["params"]) for group in parameter_groups(model, run)) == len(trained)


def test_the_encoder_waits_for_the_new_parts(tmp_path: Path) -> None:
    run = configured(run_of(tmp_path), "--data.image_size=16", "--init.frozen=0.2", "--optim.warmup=0.1")
    factors = [schedule(run, step, 100).encoder_factor for step in (0, 19, 20, 25, 30, 99)]
    assert factors == pytest.approx([0.0, 0.0, 0.0, 0.5, 1.0, 1.0])
    run = configured(run_of(tmp_path / "other"), "--data.image_size=16", "--init.frozen=0")
    assert [schedule(run, step, 100).encoder_factor for step in (0, 50)] == [1.0, 1.0]


def some_facts(run: RunConfig) -> Facts:
    return facts(run, Path("run"), 100, 100, held_out=True)


def test_what_gets_worse_is_told(tmp_path: Path) -> None:
    about = some_facts(configured(run_of(tmp_path), "--data.image_size=16", "--init.frozen=0.2"))
    assert about.comparable_from == 20
    start = {"step": 0, "check_loss": 5.0, "check_rankme": 10.0, "check_knn_top1": 0.6, "check_queries": 500.0}
    good = {**start, "step": 20, "check_loss": 1.0, "check_start_neighbors": 0.6}
    assert getting_worse([start, good], about) == {}
    assert getting_worse([start, good, {**good, "step": 50, "check_rankme": 5.6}], about) == {}
    for change, topic, words in (
        ({"check_rankme": 4.9}, "rank", "4.9 directions (RankMe) after 10.0 at the start"),
        ({"check_start_neighbors": 0.39}, "neighbors", "39 % of the nearest neighbors"),
        ({"check_loss": 1.11}, "loss", "the loss rises: 1.110 after 1.000"),
        ({"check_knn_top1": 0.5}, "labels", "k-NN fell to 50.0% from 60.0%"),
    ):
        found = getting_worse([start, good, {**good, "step": 50, **change}], about)
        assert list(found) == [topic]
        assert words in found[topic]


def test_the_best_weights() -> None:
    checks: list[dict[str, Any]] = [
        {"step": 0, "check_loss": 0.1, "check_knn_top1": 0.5},
        {"step": 20, "check_loss": 2.0, "check_knn_top1": 0.6},
        {"step": 40, "check_loss": 1.0, "check_knn_top1": 0.6},
    ]
    assert best.measure_of("auto", checks[0]) == "knn"
    assert best.measure_of("auto", {"check_loss": 1.0}) == "loss"
    assert best.measure_of("none", checks[0]) is best.measure_of("linear", checks[0]) is None
    for measure, count, expected in (("knn", 1, 0), ("knn", 2, 20), ("knn", 3, 20), ("loss", 3, 40)):
        found = best.best_of(measure, checks[:count], comparable_from=20)
        assert found is not None
        assert found["step"] == expected
    assert best.is_best("loss", checks, comparable_from=20)
    assert not best.is_best("knn", checks)
