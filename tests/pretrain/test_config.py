import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.configuration import config, sections
from hardpatch.configuration.data_section import DataConfig
from hardpatch.errors import UserError
from hardpatch.pretrain import recipes
from hardpatch.pretrain.folder import configure

PAPER = ["imagenet_base_200", "imagenet_base_800", "imagenet_large_200", "imagenet_large_800"]
SMALL = ["cifar10_tiny", "tiny_imagenet_small", "demo"]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_a_run_and_says_what_it_is(name: str) -> None:
    run = config.build(recipes.read(name), ["--data.path", "somewhere"])
    assert config.build(config.to_dict(run)) == run
    assert config.build(yaml.safe_load(config.to_yaml(run))) == run
    assert recipes.text(name).startswith("# ")


@pytest.mark.parametrize("value", [datetime.date(2024, 1, 1), {"a"}, b"a"])
def test_dates_and_sets_of_yaml_are_no_text(value: object) -> None:
    with pytest.raises(UserError, match="tokenizer: Expected str"):
        config.build({"steps": 1, "method": {"tokenizer": value}})


def test_settings_that_are_parsed_once_belong_to_each_run() -> None:
    values = {"steps": 1, "data": {"mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3]}}
    first, second = config.build(values), config.build(values)
    assert first == second
    assert isinstance(first.data.mean, list)
    first.data.mean[0] = 0.9
    assert second.data.mean == config.build(values).data.mean == [0.1, 0.2, 0.3]


def test_the_promised_recipes_exist() -> None:
    names = recipes.names()
    assert {*PAPER, *SMALL} | {f"mae_{name}" for name in [*PAPER, *SMALL]} <= set(names)


@pytest.mark.parametrize("name", [*PAPER, *SMALL])
def test_a_baseline_differs_in_the_predicting_loss_only(name: str) -> None:
    run = config.build(recipes.read(name))
    baseline = config.build(recipes.read(f"mae_{name}"))
    assert config.differences(run, baseline) == {"method.predicting_loss": ("relative", "none")}


@pytest.mark.parametrize("name", [n for n in recipes.names() if n.startswith("hpm_") and n != "hpm_fast"])
def test_mining_on_a_host_differs_from_the_host_in_the_predicting_loss_only(name: str) -> None:
    host, mined = (config.build(recipes.read(n)) for n in (name.removeprefix("hpm_"), name))
    assert config.differences(host, mined) == {"method.predicting_loss": ("none", "relative")}


def test_hpm_fast_is_hpm_made_cheaper_and_nothing_else() -> None:
    exact, fast = (config.build(recipes.read(name)) for name in ("imagenet_base_200", "hpm_fast"))
    assert {name.split(".")[0] for name in config.differences(exact, fast)} == {"fast"}


@pytest.mark.parametrize(("name", "epochs", "warmup"), [(n, int(n[-3:]), 10 if "base" in n else 40) for n in PAPER])
def test_the_papers_settings(name: str, epochs: int, warmup: int) -> None:
    run = config.build(recipes.read(name))
    assert run.epochs == epochs
    assert run.batch_size == 4096
    assert run.optim.warmup * epochs == pytest.approx(warmup)
    assert run.method.momentum_warmup * epochs == pytest.approx(100)
    assert (run.method.mask_ratio, run.method.alpha_start, run.method.alpha_end) == (0.75, 0.0, 0.5)
    assert (run.optim.base_lr, run.optim.betas, run.optim.weight_decay) == (1.5e-4, (0.9, 0.95), 0.05)


def test_command_line_wins_over_the_recipe() -> None:
    run = config.build(
        recipes.read("demo"), ["--steps", "7", "--optim.betas", "[0.8, 0.9]", "--data.image_size=[32, 48]"]
    )
    assert run.steps == 7
    assert run.epochs is None  # the recipe's epochs give way
    assert run.optim.betas == (0.8, 0.9)
    assert run.data.image_size == (32, 48)


def test_a_setting_with_a_unique_name_needs_no_section() -> None:
    run = config.build(recipes.read("demo"), ["--lr", "1e-3", "--mask_ratio=0.5", "--epochs", "3", "--size", "tiny"])
    assert (run.optim.lr, run.method.mask_ratio, run.epochs, run.model.size) == (1e-3, 0.5, 3, "tiny")
    for section, names in config.setting_names().items():
        for name in names if section else ():
            taken = [other for other, names in config.setting_names().items() if name in names and other != "init"]
            expected = section if not taken else taken[0] if len(taken) == 1 else ""
            assert config.with_section(f"--{name}=1") == (f"--{expected}.{name}=1" if expected else f"--{name}=1")
    for name in ("model.heads", "model.decoder_heads", "data.mean", "data.std", "method.frozen"):  # init has them, too
        assert config.with_section(f"--{name.split('.')[1]}") == f"--{name}"
    assert config.with_section("--init=vit.pth") == "--init.weights=vit.pth"
    run, folder = configure(None, None, None, None, ["--path", "images", "--epochs", "3"])  # not the demo recipe
    assert (run.data.path, run.data.image_size, folder.name) == ("images", 224, "run")
    assert config.with_section("--base_lr") == "--optim.base_lr"
    assert config.with_section("--train") == "--train"  # a section, and a setting of section knn


def test_a_file_may_build_on_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: demo\nsteps: 3\nmodel: {depth: 1}\n")
    run = config.build(recipes.read_file(path))
    demo = config.build(recipes.read("demo"))
    assert config.differences(demo, run) == {"steps": (None, 3), "epochs": (demo.epochs, None), "model.depth": (4, 1)}


def test_yes_and_no_are_words_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: demo\nsteps: 3\ntrain: {compile: yes, checkpoint_activations: true}\ndata: {in_memory: no}\n"
    )
    run = config.build(recipes.read_file(path))
    assert (run.train.compile, run.train.checkpoint_activations, run.data.in_memory) == ("yes", True, "no")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method.mask_ratio", "1.2"], r"method.mask_ratio: expected a number between 0 and 1, got 1\.2"),
        (["--method.mask_ratio", "abc"], "method.mask_ratio: Expected a float. Got value: abc"),
        (["--mask_rato", "0.5"], "--mask_rato: unknown argument; did you mean '--method.mask_ratio'"),
        (["--optim.base_rl", "1"], "--optim.base_rl: unknown argument; did you mean '--optim.base_lr'"),
        (["--model.size", "gigantic"], r"model.size: .*'tiny', 'small', 'base', 'large', 'huge'.*gigantic"),
        (["--data.mean", "imagnet"], "data.mean: .*'imagenet', 'computed'.*imagnet"),
        (["--data.channels", "3", "--data.mean", "[0.5]"], "data.mean: expected 3 numbers, one a channel, got 1"),
        (["--data.channels", "1", "--data.mean", "imagenet"], "data.mean: ImageNet's statistics are for 3 channels"),
        (["--steps", "3", "--epochs", "3"], "epochs, steps: expected one of the two, got both"),
        (["--batch_size", "0"], "batch_size: expected a whole number from 1, got 0"),
        (["--optim.accumulation_steps", "3"], "optim.accumulation_steps: expected a divisor of batch_size=128, got 3"),
        (["--data.crop_scale", "[0.5, 0.2]"], "data.crop_scale"),
        (
            ["--data.shrink_on_decode", "0.5"],
            "data.shrink_on_decode: expected a number from 1, or null for never, got 0.5",
        ),
        (["--method.alpha_end", "-0.1"], r"method.alpha_end: expected a number from 0 to 1, got -0.1"),
        (["--knn.train", "x"], "knn.train, knn.val: expected both or neither"),
        (["stray"], "stray: unknown argument"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.build(recipes.read("demo"), arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 1, "modle": {}}, r"unknown setting 'modle'; did you mean 'model'\?"),
        (
            {"epochs": 1, "method": {"mask_ration": 0.5}},
            r"unknown setting 'method.mask_ration'; did you mean 'mask_ratio'\?",
        ),
        ({"epochs": 1, "method": 3}, "expected settings under 'method', got 3"),
        ({}, "epochs, steps: expected one of the two, got neither"),
    ],
)
def test_mistakes_in_a_file(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.build(values)


def test_unreadable_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n")
    with pytest.raises(UserError, match="is not YAML"):
        recipes.read_file(broken)
    with pytest.raises(UserError, match=r"cannot read .*missing\.yaml"):
        recipes.read_file(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="no recipe 'cifar10_tini'; did you mean 'cifar10_tiny'"):
        recipes.read("cifar10_tini")


@given(
    seed=st.integers(0, 2**31),
    ratio=st.floats(0.01, 0.99),
    size=st.one_of(st.integers(1, 999), st.tuples(st.integers(1, 99), st.integers(1, 99))),
    clip=st.none() | st.floats(0.1, 10),
)
def test_saving_and_reading_gives_an_equal_run(seed: int, ratio: float, size: Any, clip: float | None) -> None:
    run = sections.RunConfig(
        DataConfig(image_size=size),
        method=sections.MethodConfig(mask_ratio=ratio),
        optim=sections.OptimConfig(clip=clip),
        steps=1,
        seed=seed,
    )
    assert config.build(yaml.safe_load(config.to_yaml(run))) == run


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["recipes", "demo"], ["pretrain", "--help"], ["knn", "--help"]]
)
def test_answers_without_importing_torch(arguments: list[str]) -> None:
    code = f"import sys; from hardpatch.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'timm', 'matplotlib', 'numpy'} & set(sys.modules), 'heavy imports'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hardpatch" in done.stdout or "demo" in done.stdout
