"""Loggers of a run: TensorBoard, CSV, Weights & Biases, MLflow. A training does not end because one of them fails.

This module does not import their libraries, so that the command line starts quickly.
"""

import csv
import io
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from hardpatch.errors import UserError, did_you_mean, shown
from hardpatch.files import write_text_atomically
from hardpatch.train.tensorboard import EventFile
from hardpatch.yaml_text import flat, read_settings

IDS = "loggers.json"
"""File of a run folder with the names of its runs in Weights & Biases and MLflow, which a resumed run goes on with."""
PROJECT = "hardpatch"
"""Project of Weights & Biases and experiment of MLflow, where their environment variables name no other."""

log = logging.getLogger("hardpatch")


class Logger(Protocol):
    """Destination of metrics and pictures."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step by their names."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log a PNG file."""

    def close(self) -> None:
        """Send what is left."""


class CsvFile:
    """``metrics.csv``: a line for each step, a column for each metric, as ``metrics.jsonl`` has them.

    Args:
        folder: of the run.
        read: returns the rows so far, one for each step.
    """

    def __init__(self, folder: Path, read: Callable[[], list[dict[str, Any]]]) -> None:
        self.path, self.read, self.columns, self.step = folder / "metrics.csv", read, list[str](), -1
        self._rewrite()

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Append a line; a new column, or more values of the last step, write the file anew."""
        if step == self.step or values.keys() - set(self.columns):
            self._rewrite()
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow({"step": step, **values})
        self.step = step

    def _rewrite(self) -> None:
        rows = self.read()
        self.columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(self.path, text.getvalue())

    def picture(self, name: str, path: Path, step: int) -> None:
        """Do nothing: the picture is in the folder."""

    def close(self) -> None:
        """Do nothing: each line is written at once."""


class WandbRun:
    """Run of Weights & Biases; ``WANDB_MODE=offline`` writes it to ``wandb/`` of the run folder only."""

    def __init__(self, folder: Path) -> None:
        import wandb

        ids = _read_ids(folder)
        name = ids.get("wandb") or uuid.uuid4().hex[:12]
        self._image: Callable[[str], Any] = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            name=os.environ.get("WANDB_NAME", folder.resolve().name),
            resume="allow",
            dir=folder,
            config=_settings(folder),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run.define_metric("*", step_metric="step")  # a resumed run may log steps again
        _write_ids(folder, ids | {"wandb": name})
        where = f"{self.run.dir}; wandb sync uploads it" if self.run.offline else self.run.url
        log.info("wandb: run %s, %s", name, where)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step by their names."""
        self.run.log({**values, "step": step})

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log a PNG file."""
        self.run.log({f"pictures/{name}": self._image(str(path)), "step": step})

    def close(self) -> None:
        """Finish the run, which a later call resumes."""
        self.run.finish()


class MlflowRun:
    """Run of MLflow at ``MLFLOW_TRACKING_URI``, or else in files in ``mlruns/`` of the run folder."""

    def __init__(self, folder: Path) -> None:
        place = os.environ.get("MLFLOW_TRACKING_URI") or (folder.resolve() / "mlruns").as_uri()
        if place.startswith("file:"):  # which MLflow 3 asks to be allowed
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric, self.client, ids = Metric, MlflowClient(tracking_uri=place), _read_ids(folder)
        self.id = ids.get("mlflow", "")
        try:
            if self.id:
                self.client.update_run(self.id, status="RUNNING")
        except MlflowException:
            log.warning("mlflow: %s has no run %s; a new one is begun", place, self.id)
            self.id = ""
        if not self.id:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self.client.get_experiment_by_name(name)
            experiment = self.client.create_experiment(name) if found is None else found.experiment_id
            self.id = self.client.create_run(experiment, run_name=folder.resolve().name).info.run_id
            settings = [Param(key, str(value)[:500]) for key, value in _settings(folder).items()]
            for start in range(0, len(settings), 100):  # as many as a call takes
                self.client.log_batch(self.id, params=settings[start : start + 100])
            _write_ids(folder, ids | {"mlflow": self.id})
        log.info("mlflow: run %s at %s", self.id, place)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step by their names."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[self._metric(name, value, now, step) for name, value in values.items()])

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log a PNG file; a later one of the same name replaces it."""
        self.client.log_artifact(self.id, str(path), "/".join(["pictures", *Path(name).parts[:-1]]))

    def close(self) -> None:
        """Mark the run as finished, until a later call resumes it."""
        self.client.set_terminated(self.id)


class Guarded:
    """Logger whose first failure is said, and which does nothing from then on.

    Args:
        name: of the logger.
        open_logger: opens it.
    """

    def __init__(self, name: str, open_logger: Callable[[], Logger]) -> None:
        self.name, self._logger = name, None
        self._logger = self._try(open_logger)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step by their names."""
        self._call("add", values, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log a PNG file."""
        self._call("picture", name, path, step)

    def close(self) -> None:
        """Send what is left."""
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        logger: Any = self._logger
        if logger is not None:
            self._try(lambda: getattr(logger, method)(*arguments))

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # libraries of others, over a network
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning(
                "--logger %s: %s; the training goes on without it, metrics.jsonl has all metrics", self.name, reason
            )
            self._logger = None


LIBRARIES = ("wandb", "mlflow")
"""Loggers whose package comes with an extra of the same name."""
NAMES = ("tensorboard", "csv", *LIBRARIES)


def logger_names(text: str) -> tuple[str, ...]:
    """Return the loggers that the setting ``logger`` names.

    Raises:
        UserError: if a name is unknown.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if names == ("none",):
        return ()
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"--logger: expected names from {', '.join(NAMES)} with commas between them, or none, "
                f"got {shown(repr(text))}"
                f"{did_you_mean(name, [*NAMES, 'none'])}"
            )
    return names


def check_installed(text: str) -> None:
    """Refuse loggers of the setting ``logger`` whose library is not installed.

    Raises:
        UserError: names the extra to install.
    """
    for name in logger_names(text):
        if name in LIBRARIES and find_spec(name) is None:
            raise UserError(
                f"--logger: {name} needs a package that is not installed: pip install 'hardpatch[{name}]', or leave "
                f"{name} out"
            )


def open_loggers(text: str, folder: Path, step: int, read: Callable[[], list[dict[str, Any]]]) -> list[Logger]:
    """Open the loggers of a run, each guarded; a resumed run goes on in the runs that it had.

    Args:
        text: the setting ``logger``.
        folder: of the run.
        step: optimizer steps done; TensorBoard forgets what it has of later ones.
        read: returns the rows of ``metrics.jsonl``.
    """
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: EventFile(folder / "tensorboard", purge_step=step + 1 if step else None),
        "csv": lambda: CsvFile(folder, read),
        "wandb": lambda: WandbRun(folder),
        "mlflow": lambda: MlflowRun(folder),
    }
    return [Guarded(name, makers[name]) for name in logger_names(text)]


def _read_ids(folder: Path) -> dict[str, str]:
    try:
        ids = json.loads((folder / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in ids.items() if isinstance(value, str)} if isinstance(ids, dict) else {}


def _write_ids(folder: Path, ids: Mapping[str, str]) -> None:
    write_text_atomically(folder / IDS, json.dumps(ids) + "\n")


def _settings(folder: Path) -> dict[str, Any]:
    """Return all settings of a run by dotted name; of a folder without ``config.yaml`` none."""
    path = folder / "config.yaml"
    return flat(read_settings(path, "--out")) if path.is_file() else {}
