"""The page of the viewer, with gradio: controls on the left, pictures on the right."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from hardpatch.choices import MaskName, MiningName
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.order import evenly_spread
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.sources import OpenedSource, open_source
from hardpatch.errors import UserError
from hardpatch.printable import printable
from hardpatch.view import html
from hardpatch.view.neighbors import FeatureSet
from hardpatch.view.scene import DRAWS, MAPS, MINED_BY, Choice, Scene, Seen

if TYPE_CHECKING:
    import gradio

LISTED = 1000
"""Images of a set that can be chosen by name."""
UNITS = (1, 2, 4, 8)
"""Sides, in patches, of squares that are masked as a whole."""
NOTHING = "Drop an image to see its maps, its mask and its reconstruction."


class ImageSet(NamedTuple):
    """Images to choose from, and their features by each run."""

    source: OpenedSource
    features: tuple[FeatureSet, ...]


class Viewer:
    """Contents of the page, without the page itself.

    Args:
        scenes: the runs, side by side.
        images: a set, for neighbors.
    """

    def __init__(self, scenes: Sequence[Scene], images: ImageSet | None = None) -> None:
        self.scenes, self.images = tuple(scenes), images

    def see_file(self, path: str | None) -> tuple[Seen, ...] | str:
        """Return a file as each run sees it, or why it cannot be seen."""
        if path is None:
            return NOTHING
        try:
            source = open_source(path)
        except UserError as error:
            return str(error)
        return self._see(source, 0)

    def see_number(self, index: int | None) -> tuple[Seen, ...] | str:
        """Return an image of the set as each run sees it, or why it cannot be seen."""
        if index is None or self.images is None:
            return NOTHING
        seen = self._see(self.images.source, index)
        return seen if isinstance(seen, str) else tuple(one._replace(number=index) for one in seen)

    def _see(self, source: OpenedSource, index: int) -> tuple[Seen, ...] | str:
        try:
            return tuple(scene.see(source, index) for scene in self.scenes)
        except (UserError, UndecodableImage) as error:
            return str(error)

    def maps(self, seen: tuple[Seen, ...] | str | None) -> str:
        """Return the maps and neighbors of an image, as HTML."""
        if not seen or isinstance(seen, str):
            return html.note(str(seen or NOTHING))
        return "".join(self._maps(number, scene, one) for number, (scene, one) in enumerate(self._pairs(seen)))

    def masks(self, seen: tuple[Seen, ...] | str | None, choice: Choice) -> str:
        """Return the mask of an image and its reconstruction, as HTML."""
        if isinstance(seen, str) or not seen:
            return ""
        return "".join(self._mask(scene, one, choice) for scene, one in self._pairs(seen))

    def _pairs(self, seen: tuple[Seen, ...]) -> list[tuple[Scene, Seen]]:
        return list(zip(self.scenes, seen, strict=True))

    def _maps(self, number: int, scene: Scene, seen: Seen) -> str:
        height, width = scene.student.image_size
        shown = [html.Figure(scene.picture(seen.pixels), seen.name, f"{seen.name}, {height} x {width} pixels")]
        for name, values in seen.maps.items():
            caption = f"{MAPS[name]}: {values.min():.3g} (dark) to {values.max():.3g} (bright)"
            shown.append(html.Figure(scene.heat_map(seen, name), caption, f"{seen.name}, {caption}"))
        parts = [html.heading(f"{scene.name}: {seen.name}"), html.row(shown)]
        if "whole" not in seen.maps:
            parts.append(html.note("This run has no loss predictor: only its true loss is known."))
        if self.images is not None:
            parts += [html.heading("Nearest images of the set"), html.row(self._neighbors(number, scene, seen))]
        return "".join(parts)

    def _neighbors(self, number: int, scene: Scene, seen: Seen) -> list[html.Figure]:
        assert self.images is not None
        shown = []
        for neighbor in self.images.features[number].nearest(seen.vector, but=seen.number):
            name = Path(self.images.source.name(neighbor.number)).name
            try:
                image = scene.picture(scene.read(self.images.source, neighbor.number))
            except (UserError, UndecodableImage):  # replaced since the features were computed
                continue
            caption = f"{name}: cosine {neighbor.similarity:.3f}"
            shown.append(html.Figure(image, caption, f"neighbor {caption}"))
        return shown

    def _mask(self, scene: Scene, seen: Seen, choice: Choice) -> str:
        try:
            found = scene.mask(seen, choice)
        except UserError as error:
            return html.heading(scene.name) + html.note(str(error))
        count = f"{int(found.mask.sum())} of {len(found.mask)} patches masked, {found.mined} of them mined"
        shown = [html.Figure(found.image, count, f"{seen.name} with its mask: {count}")]
        loss = f"reconstruction, mean loss of masked patches {found.loss:.3f}"
        if found.reconstruction is not None:
            shown.append(html.Figure(found.reconstruction, loss, f"{seen.name}, {loss}"))
        parts = [html.heading(f"{scene.name}: mask"), html.row(shown)]
        if found.reconstruction is None:
            parts.append(html.note(f"This run predicts features, not pixels: mean loss {found.loss:.3f}."))
        if choice.alpha > 0 and choice.by not in seen.maps:
            parts.append(html.note(f"Nothing is mined: this run has no {MAPS[choice.by]}."))
        return "".join(parts)


def page(viewer: Viewer) -> "gradio.Blocks":
    """Return the page; it is not served yet."""
    import gradio as gr

    first = viewer.scenes[0].default
    with gr.Blocks(title="hardpatch view", analytics_enabled=False) as blocks:
        gr.HTML("<h1>hardpatch view</h1>" + html.note(" and ".join(scene.name for scene in viewer.scenes)))
        state = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                file = gr.File(label="Image", file_types=list(EXTENSIONS), type="filepath", height=140)
                listed = _listed(viewer)
                controls = _controls(viewer, first)
            with gr.Column(scale=3, min_width=320):
                masks = gr.HTML("")
                maps = gr.HTML(html.note(NOTHING))
        inputs = list(controls.values())

        def shown(seen: tuple[Seen, ...] | str, *values: Any) -> tuple[Any, str, str]:
            return seen, viewer.maps(seen), viewer.masks(seen, _choice(controls, values))

        quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
        outputs = [state, maps, masks]

        def of_file(path: str | None, *values: Any) -> tuple[Any, str, str]:
            return shown(viewer.see_file(path), *values)

        def of_set(number: int | None, *values: Any) -> tuple[Any, str, str]:
            return shown(viewer.see_number(number), *values)

        file.change(of_file, [file, *inputs], outputs)
        if listed is not None:
            listed.change(of_set, [listed, *inputs], outputs)
            blocks.load(of_set, [listed, *inputs], outputs)
        for control in inputs:
            control.change(
                lambda seen, *values: viewer.masks(seen, _choice(controls, values)), [state, *inputs], masks, **quick
            )
    return blocks


def _listed(viewer: Viewer) -> Any:
    import gradio as gr

    if viewer.images is None:
        return None
    source = viewer.images.source
    names = [(printable(Path(source.name(k)).name), k) for k in evenly_spread(len(source), LISTED)]
    some = f" ({LISTED:,} of {len(source):,})" if len(source) > LISTED else ""
    return gr.Dropdown(names, value=names[0][1], label=f"Image of the set{some}")


def _controls(viewer: Viewer, first: Choice) -> dict[str, Any]:
    """Return a control for each field of :class:`~hardpatch.view.scene.Choice`."""
    import gradio as gr

    sides = [
        unit
        for unit in UNITS
        if all(side % unit == 0 and side > unit for scene in viewer.scenes for side in scene.student.grid)
    ]
    return {
        "mask_ratio": gr.Slider(0.05, 0.95, first.mask_ratio, step=0.01, label="Mask ratio (gamma)"),
        "alpha": gr.Slider(0.0, 1.0, first.alpha, step=0.01, label="Mined share of the masked patches (alpha)"),
        "mining": gr.Radio(list(get_args(MiningName)), value=first.mining, label="Patches that are mined"),
        "by": gr.Dropdown([(text, name) for name, text in MINED_BY.items()], value=first.by, label="Mined by"),
        "mask": gr.Dropdown(list(get_args(MaskName)), value=first.mask, label="Mask of the other patches"),
        "unit": gr.Dropdown([(f"{unit} x {unit} patches", unit) for unit in sides], value=1, label="Masked as a whole"),
        "seed": gr.Slider(0, 99, first.seed, step=1, label=f"Draw of the mask (the true loss has {DRAWS} of its own)"),
    }


def _choice(controls: dict[str, Any], values: Sequence[Any]) -> Choice:
    return Choice(**dict(zip(controls, values, strict=True)))
