"""Images and their maps by name."""

from hypothesis import given
from hypothesis import strategies as st

from hardpatch.data.pairs import IMAGE_SUFFIXES, SUFFIXES, match


def test_stems_suffixes_and_folders() -> None:
    images = ["a.jpg", "b.jpg", "x/c_leftImg8bit.png", "d_sat.jpg", "e.jpg", "x/f.jpg", "y/f.jpg"]
    maps = ["a.png", "b_mask.gif", "x/c_gtFine_labelIds.png", "d_mask.png", "e.jpg.png", "x/f.png", "y/f.png", "g.png"]
    found = match(images, maps)
    assert found.maps == {k: k for k in range(7)}
    assert found.rules == {
        "same stem": 3,
        "stem + _mask": 1,
        "stem without _leftImg8bit + _gtFine_labelIds": 1,
        "stem without _sat + _mask": 1,
        "name of the image as stem": 1,
    }
    assert found.unused == [7]
    assert (found.missing, found.several, found.shared) == ([], {}, {})


def test_nested_images_and_flat_maps() -> None:
    assert match(["p/q/a.jpg", "p/b.jpg"], ["b.png", "z/a.png"]).maps == {0: 1, 1: 0}


def test_missing_several_and_shared() -> None:
    found = match(["a.jpg", "b.jpg", "c.jpg", "c.png"], ["a.png", "a_mask.png", "c.png"])
    assert found.missing == [1]
    assert found.several == {0: [0, 1]}
    assert found.shared == {2: [2, 3]}
    assert found.unused == []
    assert match(["a.jpg"], ["a.png", "a.tif"]).several == {0: [0, 1]}
    assert match(["x/a.jpg"], ["y/a.png", "z/a.png"]).several == {0: [0, 1]}


def test_a_chosen_suffix_is_the_only_one() -> None:
    images, maps = ["a.jpg", "b.jpg"], ["a.png", "a_x.png", "a_mask.png", "b_x.png"]
    assert match(images, maps, "_x").maps == {0: 1, 1: 3}
    assert match(images, maps, "_mask").missing == [1]
    assert match(images, maps, "").maps == {0: 0}


def test_lossy_maps_are_second_choice() -> None:
    assert match(["a.jpg", "b.jpg"], ["a.jpg", "a.png", "b.jpg"]).maps == {0: 1, 1: 2}


def test_the_map_of_another_image_is_not_taken() -> None:
    assert match(["a.jpg", "a_img.jpg", "a_mask.jpg"], ["a.png", "a_img.png", "a_mask.png"]).maps == {0: 0, 1: 1, 2: 2}


@given(
    st.sets(st.text("abc", min_size=1, max_size=4), min_size=1),
    st.sampled_from(("", *SUFFIXES)),
    st.sampled_from(("", *IMAGE_SUFFIXES)),
)
def test_every_suffix(stems: set[str], suffix: str, image_suffix: str) -> None:
    names = sorted(stems)
    found = match([f"i/{name}{image_suffix}.jpg" for name in names], [f"m/{name}{suffix}.png" for name in names])
    assert found.maps == {k: k for k in range(len(names))}
    assert len(found.rules) == 1
