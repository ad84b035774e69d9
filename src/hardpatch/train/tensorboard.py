"""Scalars and pictures of a run for TensorBoard, written by the training itself.

TensorBoard's own writer does it in a thread, in which a full disk ends with a traceback on the terminal.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hardpatch.files import reason_of

log = logging.getLogger("hardpatch")


class EventFile:
    """A new event file in ``folder``; where it cannot be written, a warning says so and the curves have a gap.

    Args:
        folder: for ``tensorboard --logdir``.
        purge_step: TensorBoard forgets what earlier files hold from this step on; None for a new run.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        self._writer: Any = None
        self._open(folder)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write the values of a step by their names."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=self._summary(value=scalars))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Write a PNG file."""
        from PIL import Image

        with Image.open(path) as image:
            size = {"width": image.width, "height": image.height, "colorspace": len(image.getbands())}
        content = self._summary.Image(encoded_image_string=path.read_bytes(), **size)
        self._write(
            step=step, summary=self._summary(value=[self._summary.Value(tag=f"pictures/{name}", image=content)])
        )

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None

    def _open(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        for number in range(1000):
            name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{number}"
            try:
                folder.mkdir(exist_ok=True)
                self._writer = RecordWriter((folder / name).open("xb"))
                return
            except FileExistsError:
                continue
            except OSError as error:
                self._warn(error)
                return

    def _write(self, **content: Any) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
            self._writer.flush()
        except OSError as error:  # TensorBoard reads a file up to a broken record
            self._warn(error)
            self.close()

    def _warn(self, error: OSError) -> None:
        log.warning("no more curves for TensorBoard: %s", reason_of(error))
