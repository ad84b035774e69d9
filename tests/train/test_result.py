import json
from pathlib import Path
from typing import Any

from hardpatch import __version__
from hardpatch.train.result import head, write_result

HEAD: dict[str, Any] = {
    "run": "runs/a",
    "data": {"train": "images"},
    "images": {"train": 9},
    "classes": 3,
    "left_out": {"undecodable": 1},
    "seconds": 1.26,
}


def test_a_result_is_the_head_and_the_values_of_the_verb(tmp_path: Path) -> None:
    result = write_result(tmp_path, "knn", **HEAD, top1=0.5)
    assert result == {"verb": "knn", **HEAD, "seconds": 1.3, "version": __version__, "top1": 0.5}
    assert list(result) == [*head("knn", **HEAD), "top1"]
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_a_later_result_replaces_the_file(tmp_path: Path) -> None:
    for top1 in (0.5, 0.75):
        write_result(tmp_path, "knn", **HEAD, top1=top1)
    assert json.loads((tmp_path / "result.json").read_text())["top1"] == 0.75
