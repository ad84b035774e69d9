"""Serve the viewer on this machine: ``hardpatch view``."""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from hardpatch.choices import Architecture
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.summary import open_described
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.evaluate.difficulty import load_models
from hardpatch.measure.features import ProgressCallback
from hardpatch.printable import printable
from hardpatch.ranges import check_options
from hardpatch.train.device import use_device
from hardpatch.view import html
from hardpatch.view.app import ImageSet, Viewer, page
from hardpatch.view.neighbors import FeatureSet
from hardpatch.view.scene import Scene

log = logging.getLogger("hardpatch")

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that no other one can reach."""


def view(
    runs: Sequence[str | Path],
    images: str | Sequence[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    started: Callable[[str], None] = lambda address: None,
    **options: Any,
) -> None:
    """Serve a page that shows images as runs see them, until SIGINT: ``hardpatch view``.

    Args:
        runs: one or two runs, see :func:`open_viewer`.
        images: set in which neighbors are searched.
        host: address to listen on, see :func:`serve`.
        port: to listen on; None for the first free one from 7860.
        started: called with the address when the page is there.
        options: further arguments of :func:`open_viewer`.

    Raises:
        UserError: if weights or images cannot be read, gradio is not installed, or the address cannot be used.
    """
    check_options(port=port)
    _check_gradio()
    serve(open_viewer(runs, images, **options), host=host, port=port, started=started)


def open_viewer(
    runs: Sequence[str | Path],
    images: str | Sequence[str] | None = None,
    *,
    normalize_pixels: bool = False,
    architecture: Architecture | None = None,
    image_column: str | None = None,
    batch_size: int = 64,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> Viewer:
    """Load runs, and the features of a set; :meth:`~hardpatch.view.app.Viewer.see_file` then shows images.

    Args:
        runs: one or two run folders or weights with a decoder, as of :func:`hardpatch.load`.
        images: set in which neighbors are searched: files, folders, Parquet files, ``demo:test``; None for none.
        normalize_pixels: as of :func:`hardpatch.load`.
        architecture: its further arguments, for weights of other libraries.
        image_column: column of the images in tables; None finds it.
        batch_size: images of the set per forward pass.
        workers: processes that decode images.
        max_bad_fraction: share of the images that may be undecodable; these are named and left out.
        device: where to compute.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: if weights or images cannot be read.
    """
    check_options(batch_size=batch_size, workers=workers, max_bad_fraction=max_bad_fraction)
    if not 1 <= len(runs) <= 2:
        raise UserError(f"RUN: expected one run or two to compare, got {len(runs)}")
    used_device = use_device(device)
    scenes = []
    for run in runs:
        models = load_models(run, normalize_pixels=normalize_pixels, architecture=architecture, device=used_device)
        scenes.append(Scene(printable(str(run)), models, used_device))
    if images is None:
        return Viewer(scenes)
    features = []
    source = open_described(images, image_column, scenes[0].student.reading, argument="--set")
    for scene in scenes:
        if scene.student.reading != scenes[0].student.reading:
            raise UserError(
                f"RUN: two runs are compared on the same channels and types of pixels, {scene.name} has others"
            )
        settings: dict[str, Any] = {"batch_size": batch_size, "workers": resolve_workers(workers)}
        features.append(FeatureSet(scene.student, source, used_device, progress=progress, **settings))
        BadFiles(len(source), max_bad_fraction, "--max_bad_fraction", source=source).update(features[-1].bad)
    return Viewer(scenes, ImageSet(source, tuple(features)))


def serve(
    viewer: Viewer,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    started: Callable[[str], None] = lambda address: None,
    stop: threading.Event | None = None,
) -> None:
    """Serve the page until ``stop`` is set, or SIGINT. It sends nothing anywhere and loads nothing from elsewhere.

    Args:
        viewer: what is shown.
        host: address to listen on; others than this machine's own make the page public in its network.
        port: to listen on; None for the first free one from 7860.
        started: called with the address when the page is there.
        stop: ends it.

    Raises:
        UserError: if gradio is not installed, or the address cannot be used.
    """
    _check_gradio()
    if host not in LOCAL:
        log.warning("--host %s: whoever reaches this machine in its network sees the page", host)
    stop = stop or threading.Event()
    with tempfile.TemporaryDirectory(prefix="hardpatch_view_") as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        import gradio as gr

        fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        blocks = page(viewer)
        settings: dict[str, Any] = {"theme": gr.themes.Default(**fonts), "css": html.STYLE, "footer_links": []}
        try:
            _, address, _ = blocks.launch(
                server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, **settings
            )
        except (OSError, ValueError) as error:  # the second where a proxy stands between this machine and itself
            reason = " ".join(str(error).split())
            raise UserError(f"--host, --port: expected a free port, got {host} {port or ''}: {reason}") from None
        try:
            started(address)
            stop.wait()
        except KeyboardInterrupt:
            pass
        finally:
            blocks.close(verbose=False)


def _check_gradio() -> None:
    if find_spec("gradio") is None:
        raise UserError("view: expected gradio, which is not installed: pip install 'hardpatch[view]'")
