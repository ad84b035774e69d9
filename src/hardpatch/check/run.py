"""A look at every image of a set before training: what is there, what is left out, what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from statistics import median_low
from typing import Any

from hardpatch.check.collect import Collected
from hardpatch.check.findings import Finding
from hardpatch.check.folder import folder_findings, look_at_folder
from hardpatch.check.images import Balance, balance_of, class_findings, image_findings
from hardpatch.check.reading import ReadingSettings, reading_settings
from hardpatch.check.stats import Statistics, look_at_all, statistics_of
from hardpatch.check.targets import annotation_findings, mask_findings
from hardpatch.data.names import listed, path_text
from hardpatch.data.reading import type_range
from hardpatch.data.sources import Paths
from hardpatch.data.summary import summarize
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.ranges import check_text


@dataclass(frozen=True)
class Check:
    """Result of :func:`check`."""

    path: str
    summary: str
    """one line: images, classes, and the files of other formats that are left out"""
    found: Collected = field(repr=False)
    statistics: Statistics | None
    """None if nothing can be trained on; a finding says why"""
    balance: Balance | None
    """None if the images have no classes"""
    findings: list[Finding]

    @property
    def refused(self) -> bool:
        """True if a training would refuse the images."""
        return any(finding.level == "refused" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return all that was found as plain values."""
        found, balance = self.found, self.balance
        sizes = {"height": found.heights, "width": found.widths}
        return {
            "path": self.path,
            "summary": self.summary,
            "images": found.total,
            "readable": found.survey.images,
            "refused": self.refused,
            "formats": found.formats,
            "sizes": {name: [min(s), median_low(s), max(s)] for name, s in sizes.items() if s},
            "channels": {str(number): count for number, count in found.survey.channels.items()},
            "types": {
                dtype: {
                    "images": extent.images,
                    "values": [extent.low, extent.high] if extent.low <= extent.high else [],  # all NaN
                    "range": list(type_range(dtype)),
                }
                for dtype, extent in found.extents.items()
            },
            "turned": found.survey.turned,
            "transparent": found.survey.transparent,
            "pages": found.paged,
            "negative": found.negative,
            "classes": None if balance is None else balance.counts,
            "statistics": None if self.statistics is None else self.statistics.to_dict(),
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check(
    path: Paths,
    *,
    labels: bool = False,
    annotations: str | PathLike[str] | None = None,
    masks: str | PathLike[str] | None = None,
    classes: str | None = None,
    workers: int | str = "auto",
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    **settings: Any,
) -> Check:
    """Look at every image of a set, and say what a training would do with it: ``hardpatch check``.

    Nothing is changed or written.

    Args:
        path: images, one path or several; see :func:`hardpatch.data.sources.open_source`.
        labels: check the set for a training on labels, too, which is refused without two classes.
        annotations: objects of the images, as `detect` reads them; then `path` is a folder.
        masks: folder of label maps, as `segment` reads them; then `path` is a folder.
        classes: number of classes of the label maps, or a file of their names; ``classes.txt`` beside them by default.
        workers: processes that decode images.
        progress: called with the number of images done and of all images.
        settings: how the images are read, as in ``pretrain`` (:data:`hardpatch.configuration.data_section.READING`).

    Raises:
        UserError: if there are no images, or for more than one of labels, annotations and masks.
    """
    for name, value in (("annotations", annotations), ("masks", masks), ("classes", classes)):
        check_text(f"--{name}", value)
    number, paths, chosen = resolve_workers(workers), listed(path), reading_settings(settings)
    _check_arguments(paths, labels, annotations, masks, classes)
    source, folder, limit = chosen.open(path), Path(paths[0]), chosen.data.max_bad_fraction
    folders = [Path(each) for each in paths if Path(each).is_dir()]
    findings = [finding for each in folders for finding in folder_findings(look_at_folder(each), labels)]
    found = look_at_all(source, chosen, number, progress)
    findings += image_findings(found, source, chosen.data)
    balance = balance_of(found, source)
    findings += class_findings(balance, labels, findings)
    statistics, refusal = _statistics(found, chosen)
    reading = chosen.initial if statistics is None else statistics.reading
    if annotations is not None:
        findings += annotation_findings(folder, str(annotations), reading, limit, number, progress)
    if masks is not None:
        findings += mask_findings(folder, str(masks), classes, reading, limit, number, progress)
    return Check(path_text(path), summarize(source), found, statistics, balance, findings + refusal)


def _check_arguments(paths: list[Any], labels: bool, annotations: Any, masks: Any, classes: str | None) -> None:
    given = [name for name, value in (("labels", labels), ("annotations", annotations), ("masks", masks)) if value]
    if len(given) > 1:
        raise UserError(f"--{given[1]}: expected one of --labels, --annotations and --masks, got --{given[0]}, too")
    if given and given != ["labels"] and not (len(paths) == 1 and Path(paths[0]).is_dir()):
        raise UserError(f"--{given[0]}: expected a folder of images, got {path_text(paths)}")
    if classes is not None and masks is None:
        raise UserError("--classes: names the classes of --masks, which is missing")


def _statistics(found: Collected, chosen: ReadingSettings) -> tuple[Statistics | None, list[Finding]]:
    """Return the statistics, or why there are none."""
    if not found.histograms:
        return None, []  # all are broken, which is a finding already
    try:
        return statistics_of(found, chosen), []
    except UserError as error:
        return None, [Finding("settings", str(error), level="refused")]
