"""Paths that are no paths are refused, and none is taken for another."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hardpatch
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.interchange.load import weights_file
from hardpatch.paths import typed, user_path
from hardpatch.pretrain import recipes
from hardpatch.pretrain.folder import configure

EMPTY = "expected a (path|value), got an empty text"


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert typed("~/x") == "/home/me/x"
    assert typed("~") == "/home/me"
    assert typed("a~b") == "a~b"
    assert typed("~nobody_of_this_name/x") == "~nobody_of_this_name/x"
    assert user_path(Path("~/x"), "--out") == Path("/home/me/x")


@pytest.mark.parametrize(
    "call",
    [
        lambda: open_source(""),
        lambda: open_source(["demo:train", " "]),
        lambda: weights_file(""),
        lambda: recipes.read_file(""),
        lambda: hardpatch.pretrain("demo", out=""),
        lambda: hardpatch.pretrain("demo", data=""),
        lambda: hardpatch.pretrain(config=""),
        lambda: hardpatch.pretrain("", data="demo:train", hours=1),
        lambda: hardpatch.plan(""),
        lambda: hardpatch.plan("demo:train", config=""),
        lambda: hardpatch.pretrain("demo", **{"knn.train": "", "knn.val": "x"}),  # type: ignore[arg-type]
        lambda: hardpatch.finetune("", "demo:train", "demo:test", "out"),
        lambda: hardpatch.finetune("x", "demo:train", "demo:test", ""),
        lambda: hardpatch.segment("x", "", "b", "out"),
        lambda: hardpatch.detect("x", "a", "", "b", "c", "out"),
        lambda: hardpatch.train_tokenizer("", "out"),
        lambda: hardpatch.knn("", "demo:train", "demo:test"),
        lambda: hardpatch.embed("x", "demo:test", ""),
        lambda: hardpatch.score("x", "demo:test", ""),
        lambda: hardpatch.check(""),
        lambda: hardpatch.check("demo:train", classes=""),
        lambda: hardpatch.stats(""),
        lambda: hardpatch.export("x", "timm", ""),
        lambda: hardpatch.load(""),
    ],
)
def test_an_empty_text_is_no_path(call: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=EMPTY):
        call()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["null", "Null", "123", "true", "[a]", "{a: 1}", "2024-13-45", "!!int x"])
def test_a_path_on_the_command_line_is_no_yaml(name: str) -> None:
    run, _ = configure("demo", None, name, None, [])
    assert run.data.path == name
    run, _ = configure("demo", None, [name, "b"], None, [])
    assert run.data.path == [name, "b"]


def test_home_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert configure("demo", None, "~", None, [])[0].data.path == "/home/me"
    assert configure("demo", None, ["~/a", "b"], None, [])[0].data.path == ["/home/me/a", "b"]


def test_a_file_of_settings_may_name_such_a_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\ndata: {path: 'null'}\n")
    assert configure(None, file, None, None, [])[0].data.path == "null"
    file.write_text("base: demo\ndata: {path: null}\n")
    assert configure(None, file, None, None, [])[0].data.path is None
