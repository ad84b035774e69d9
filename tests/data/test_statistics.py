import pytest

from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD, resolve_statistics


def test_values_and_names_of_statistics() -> None:
    def never() -> tuple[list[float], list[float]]:
        raise AssertionError("computed")

    assert resolve_statistics("imagenet", "imagenet", never) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert resolve_statistics((0.1, 0.2), [0.3, 0.4], never) == ([0.1, 0.2], [0.3, 0.4])
    with pytest.raises(AssertionError, match="computed"):
        resolve_statistics("imagenet", "computed", never)
    assert resolve_statistics("computed", [0.3], lambda: ((0.5,), (0.25,))) == ([0.5], [0.3])
    assert resolve_statistics([0.3], "computed", lambda: ((0.5,), (0.25,))) == ([0.3], [0.25])
