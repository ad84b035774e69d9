"""The parts of fine-tuning, each against a slow or hand-computed version."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.data.augment import TrainTransform
from hardpatch.errors import UserError
from hardpatch.finetune import settings
from hardpatch.finetune.augment import FinetuneTransform, Mixer, seeded
from hardpatch.finetune.measure import Evaluation, confusion_figure, report
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.settings import FinetuneRun, configure
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import build_encoder, encoder_settings
from hardpatch.models.positions import resample_positions
from hardpatch.train.optimizer import layer_decay_groups, layer_of
from hardpatch.train.settings import to_dict, to_yaml

PATHS = {"run": "r", "train": "t", "val": "v"}


def small_classifier(classes: int = 3, relative: bool = False, image_size: tuple[int, int] | None = None) -> Classifier:
    torch.manual_seed(0)
    encoder = Encoder(
        image_size=(16, 24),
        patch_size=4,
        width=32,
        depth=3,
        heads=2,
        drop_masked=not relative,
        positions="relative" if relative else "sincos",
        layer_scale=0.1 if relative else None,
    )
    return Classifier(encoder, classes, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), image_size=image_size, drop_path=0.2)


def test_learning_rates_of_vit_base_are_those_of_the_formula_and_of_timm() -> None:
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        ours = Classifier(
            Encoder(image_size=(224, 224), patch_size=16, width=768, depth=12, heads=12),
            1000,
            mean=[0.5] * 3,
            std=[0.5] * 3,
        )
        theirs = VisionTransformer(global_pool="avg", fc_norm=True)
    groups = layer_decay_groups(ours, weight_decay=0.05, layer_decay=0.8)
    name_of = {parameter: name for name, parameter in ours.named_parameters()}
    found = {name_of[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == set(name_of.values())
    assert sum(len(group["params"]) for group in groups) == len(name_of)
    for name, layer in {
        "encoder.cls_token": 0,
        "encoder.positions": 0,
        "encoder.patch_embed.proj.bias": 0,
        "encoder.blocks.0.attn.qkv.weight": 1,
        "encoder.blocks.11.mlp.fc2.bias": 12,
        "fc_norm.weight": 13,
        "head.weight": 13,
    }.items():
        assert found[name][0] == pytest.approx(0.8 ** (12 + 1 - layer)), name
    assert found["head.weight"] == (1.0, 0.05)
    assert found["encoder.cls_token"][1] == found["encoder.positions"][1] == found["head.bias"][1] == 0.0

    reference = param_groups_layer_decay(
        theirs, weight_decay=0.05, layer_decay=0.8, no_weight_decay_list=theirs.no_weight_decay()
    )
    timm_name = {parameter: name for name, parameter in theirs.named_parameters()}
    expected = {
        timm_name[p]: (group["lr_scale"], group["weight_decay"]) for group in reference for p in group["params"]
    }
    told = {name.removeprefix("encoder.").replace("positions", "pos_embed"): pair for name, pair in found.items()}
    assert told.keys() == expected.keys()
    for name, pair in expected.items():
        assert told[name] == pytest.approx(pair), name


def test_a_shared_position_bias_learns_like_the_head() -> None:
    assert layer_of("encoder.relative_bias.table", 12) == 13
    names = dict(small_classifier(relative=True).named_parameters())
    assert "encoder.relative_bias.table" in names
    assert "encoder.mask_token" not in names


def test_the_classifier_step_by_step() -> None:
    model = small_classifier().eval()
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.fc_norm.weight)
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    images = torch.stack([(pixels[:, c] / 255 - model.mean[c]) / model.std[c] for c in range(3)], dim=1)
    assert torch.allclose(model.normalize(pixels), images, atol=1e-6)
    encoder = model.encoder
    tokens = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2) + encoder.positions
    tokens = torch.cat([encoder.cls_token.expand(2, -1, -1), tokens], dim=1)
    for block in encoder.blocks:
        tokens = block(tokens)
    mean = tokens[:, 1:].sum(dim=1) / 24  # neither class token nor the norm of pre-training
    normed = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    scores = (normed * model.fc_norm.weight + model.fc_norm.bias) @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(images), scores, atol=1e-4)


def test_everything_is_trained_and_drop_path_rises() -> None:
    for model in (small_classifier(), small_classifier(relative=True)):
        assert [block.drop_path for block in model.encoder.blocks] == pytest.approx([0.0, 0.1, 0.2])
        torch.nn.init.normal_(model.head.weight)
        model.train()(torch.randn(4, 3, 16, 24)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_first_scores_have_no_opinion() -> None:
    assert small_classifier()(torch.randn(4, 3, 16, 24)).abs().max() < 1e-3


@pytest.mark.parametrize("relative", [False, True])
def test_another_image_size(relative: bool) -> None:
    before, model = small_classifier(relative=relative), small_classifier(relative=relative, image_size=(32, 32))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    if not relative:
        assert before.encoder.positions is not None
        assert model.encoder.positions is not None
        expected = resample_positions(before.encoder.positions, (4, 6), (8, 8))
        assert torch.equal(model.encoder.positions, expected)
        assert isinstance(model.encoder.positions, torch.nn.Parameter)
    again = Classifier(build_encoder(encoder_settings(model.encoder)), 3, mean=[0] * 3, std=[1] * 3)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), model.eval()(images))
    with pytest.raises(ValueError, match="divisor of the image size 30x30"):
        small_classifier(relative=relative, image_size=(30, 30))


def mixer(**changed: float) -> Mixer:
    given = {"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "smoothing": 0.1, **changed}
    return Mixer(4, seed=3, **given)


def test_label_smoothing_by_hand() -> None:
    _, targets = mixer(mixup=0, cutmix=0)(torch.zeros(2, 1, 2, 2), torch.tensor([1, 3]), 0)
    assert torch.allclose(
        targets, torch.tensor([[0.025, 0.925, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]])
    )  # 0.1 over four classes
    scores = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.5, 0.0, 0.0, 0.0]])
    by_hand = 0.0
    for row, label in zip(scores.tolist(), (1, 3), strict=True):
        total = math.log(sum(map(math.exp, row)))
        by_hand += sum((0.925 if k == label else 0.025) * (total - row[k]) for k in range(4)) / 2
    assert F.cross_entropy(scores, targets).item() == pytest.approx(by_hand, rel=1e-5)
    torch_says = F.cross_entropy(scores, torch.tensor([1, 3]), label_smoothing=0.1)
    assert F.cross_entropy(scores, targets).item() == pytest.approx(torch_says.item(), rel=1e-5)


@given(
    step=st.integers(0, 10**6),
    alphas=st.sampled_from([(0.8, 1.0), (0.8, 0.0), (0.0, 1.0), (0.0, 0.0)]),
    smoothing=st.sampled_from([0.0, 0.1]),
    probability=st.sampled_from([0.5, 1.0]),
)
def test_targets_sum_to_one_and_say_what_is_in_the_image(
    step: int, alphas: tuple[float, float], smoothing: float, probability: float
) -> None:
    labels = torch.tensor([0, 1, 2, 3, 1, 0])
    images = labels.float().view(6, 1, 1, 1).expand(6, 3, 8, 8).clone()
    mix = mixer(mixup=alphas[0], cutmix=alphas[1], probability=probability, smoothing=smoothing)
    mixed, targets = mix(images.clone(), labels, step)
    assert torch.allclose(targets.sum(dim=1), torch.ones(6))
    assert targets.min() >= 0
    if smoothing == 0:  # pixels have the number of their class: their mean is what the target says
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(4.0), atol=1e-5)
    again, same = mix(images.clone(), labels, step)
    assert torch.equal(mixed, again)
    assert torch.equal(targets, same)


def test_batches_are_mixed_in_both_ways_and_not_always() -> None:
    labels = torch.arange(4)
    images = labels.float().view(4, 1, 1, 1).expand(4, 1, 16, 16)
    kinds = {"neither": 0, "mixup": 0, "cutmix": 0}
    mix = mixer(probability=0.5)
    for step in range(400):
        mixed, _ = mix(images.clone(), labels, step)
        if torch.equal(mixed, images):
            kinds["neither"] += 1
        else:
            kinds["cutmix" if (mixed == mixed.round()).all() else "mixup"] += 1
    # 200, 100, 100 are expected, some of the cuts being empty
    assert 170 <= kinds["neither"] <= 240
    assert 70 <= kinds["mixup"] <= 130
    assert 70 <= kinds["cutmix"] <= 130


def states() -> tuple[object, list[int]]:
    return random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002


def test_seeds_leave_the_global_generators_alone() -> None:
    before = states()
    with seeded(1, 2):
        first = random.random(), np.random.rand()  # noqa: NPY002
    with seeded(1, 2):
        assert first == (random.random(), np.random.rand())  # noqa: NPY002
    with seeded(2, 1):
        assert first[0] != random.random()
    mixer()(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), 5)
    transform(magnitude=9.0)(picture(), np.random.default_rng(0))
    assert states() == before


def picture(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (40, 50, channels), dtype=np.uint8)


def transform(channels: int = 3, magnitude: float = 0.0, erase: float = 0.0) -> FinetuneTransform:
    mean, std = (0.5,) * channels, (0.25,) * channels
    return FinetuneTransform((24, 32), channels, mean=mean, std=std, magnitude=magnitude, erase=erase)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_looks_the_same_for_the_same_numbers(channels: int) -> None:
    augment = transform(channels, magnitude=9.0, erase=0.5)
    plain = TrainTransform((24, 32), channels)
    changed = 0
    for seed in range(200):
        out = augment(picture(channels), np.random.default_rng(seed))
        assert out.shape == (channels, 24, 32)
        assert out.dtype == torch.uint8
        assert torch.equal(out, augment(picture(channels), np.random.default_rng(seed)))
        crop = plain(picture(channels), np.random.default_rng(seed))
        assert torch.equal(crop, transform(channels)(picture(channels), np.random.default_rng(seed)))
        changed += not torch.equal(out, crop)
    assert changed > 100


def test_rand_augment_is_that_of_timm() -> None:
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (128, 128, 128), "magnitude_max": 9.99})
    for seed in range(40):
        rng = np.random.default_rng(seed)
        crop = transform()(picture(), np.random.default_rng(seed))
        TrainTransform((24, 32))(picture(), rng)
        with seeded(int(rng.integers(2**32))):
            expected = np.array(theirs(Image.fromarray(crop.permute(1, 2, 0).numpy())))
        found = transform(magnitude=9.0)(picture(), np.random.default_rng(seed))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_erasing_makes_a_rectangle_of_noise() -> None:
    gray = np.full((64, 64, 3), 60, dtype=np.uint8)
    erase = FinetuneTransform((64, 64), scale=(1.0, 1.0), ratio=(1.0, 1.0), erase=0.25)
    always = FinetuneTransform((64, 64), scale=(1.0, 1.0), ratio=(1.0, 1.0), erase=1.0)
    times, values = 0, []
    for seed in range(400):
        times += bool((erase(gray, np.random.default_rng(seed)) != 60).any())
        changed = always(gray, np.random.default_rng(seed)) != 60
        rows, columns = changed.any(dim=0).any(dim=1).nonzero(), changed.any(dim=0).any(dim=0).nonzero()
        inside = changed[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert inside.float().mean() > 0.9  # noise is 60 now and then
        assert changed.sum() == inside.sum()
        height, width = inside.shape[1:]
        assert 0.015 < height * width / 64**2 < 0.36
        assert 0.25 < height / width < 4.0
        values.append(always(gray, np.random.default_rng(seed))[changed].float())
    assert 75 <= times <= 125
    noise = torch.cat(values)
    assert noise.mean().item() == pytest.approx(127.5, abs=2)  # the mean and deviation of the normalization
    assert noise.std().item() == pytest.approx(0.25 * 255, rel=0.06)  # a little less: black and white cut it off


def test_presets() -> None:
    paper = configure(**PATHS)
    assert (paper.epochs, paper.warmup_epochs, paper.batch_size, paper.base_lr) == (100, 5, 1024, 5e-4)
    assert (paper.weight_decay, paper.betas, paper.layer_decay) == (0.05, (0.9, 0.999), 0.8)
    assert (paper.randaugment, paper.randaugment_std, paper.erase) == (9, 0.5, 0.25)
    assert (paper.smoothing, paper.mixup, paper.cutmix, paper.drop_path) == (0.1, 0.8, 1.0, 0.1)
    for name in ("small", "tiny"):
        preset = configure(name, **PATHS)
        assert 64 <= preset.batch_size <= 128
        assert preset.randaugment < paper.randaugment
        assert configure(name, **PATHS, batch_size=8).batch_size == 8
    assert configure(**PATHS, from_scratch=True).layer_decay == 1.0
    assert configure(**PATHS, from_scratch=True, layer_decay=0.9).layer_decay == 0.9


def test_settings_survive_yaml() -> None:
    for run in (configure(**PATHS), configure("tiny", **PATHS, from_scratch=True, ema=0.99, clip=1.0, min_lr=1e-6)):
        assert settings.build(yaml.safe_load(to_yaml(to_dict(run)))) == run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "--epoch: unknown argument; did you mean '--epochs'?"),
        (["--epochs", "many"], "--epochs: Expected a float"),
        (["--seed"], "--seed: expected one argument"),
        (["more"], "unexpected argument more"),
        (["--epochs", "0"], "--epochs: expected a number above 0, got 0"),
        (["--warmup_epochs", "200"], "--warmup_epochs: expected at most the 100 epochs of --epochs, got 200"),
        (["--smoothing", "1"], r"--smoothing: expected a number in [0, 1), got 1"),
        (["--mixup", "-1"], "--mixup: expected 0 or more, got -1"),
        (["--randaugment", "11"], r"--randaugment: expected a magnitude in [0, 10], got 11"),
        (["--crop_scale", "[0.5,0.2]"], "--crop_scale: expected shares"),
        (["--batch_size", "15"], "--batch_size: mixup and CutMix pair the images of a batch, expected an even number"),
        (["--accumulation_steps", "3"], "--accumulation_steps: expected a divisor of the batch size 1024, got 3"),
        (["--ema", "1"], r"--ema: expected a number in (0, 1), got 1"),
        (["--seed", "-1"], "--seed: expected 0 or more, got -1"),
        (["--eval_epochs", "0"], "--eval_epochs: expected a number above 0"),
        (["--weights", "best"], "--weights: "),
    ],
)
def test_settings_that_cannot_be_meant(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        settings.build(PATHS, arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_missing_settings() -> None:
    for name, told in {"run": "RUN: expected what", "train": "--train: expected", "val": "--val: expected"}.items():
        with pytest.raises(UserError) as error:
            settings.build({key: value for key, value in PATHS.items() if key != name})
        assert str(error.value).startswith(told)
    with pytest.raises(UserError, match=r"did you mean 'small'\?"):
        configure("smal", **PATHS)


def test_an_odd_batch_needs_no_mixing() -> None:
    assert FinetuneRun("r", "t", "v", batch_size=15, mixup=0, cutmix=0).batch_size == 15


def test_report_by_hand(tmp_path: Path, check_picture: Callable[[Path], None]) -> None:
    confusion = torch.tensor([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    found = Evaluation(confusion, top5=1.0, loss=0.7)
    assert (found.images, found.top1) == (8, 0.625)
    told = json.loads(json.dumps(report(found, ["a", "b", "c"], best_top1=0.75, best_epoch=4.0)))
    assert told["top1"] == 0.625
    assert (told["best_top1"], told["best_epoch"]) == (0.75, 4.0)
    assert told["classes"] == [
        {"name": "a", "images": 4, "top1": 0.75},
        {"name": "b", "images": 4, "top1": 0.5},
        {"name": "c", "images": 0, "top1": None},
    ]
    assert told["confusions"] == [
        {"class": "b", "taken_for": "a", "images": 2},
        {"class": "a", "taken_for": "b", "images": 1},
    ]
    for count in (3, 20, 120):
        names = [f"a rather long name of class $number {k}$" for k in range(count)]
        path = tmp_path / f"{count}.png"
        confusion_figure(torch.eye(count, dtype=torch.int64), names).savefig(path)
        check_picture(path)


@pytest.fixture
def check_picture() -> Callable[[Path], None]:
    """Is the diagonal dark and the rest light?"""
    from PIL import Image

    def check(path: Path) -> None:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.min() < 80
        assert np.median(pixels) > 230

    return check
