"""Reading and normalization of the images of a run, where its settings leave them to the images themselves."""

from typing import NamedTuple

from hardpatch.configuration.sections import RunConfig
from hardpatch.data.bands import as_read
from hardpatch.data.reading import Reading
from hardpatch.data.sources import OpenedSource, Source, open_source
from hardpatch.data.statistics import channel_statistics, resolve_statistics
from hardpatch.data.survey import check_decodable, resolve_channels, resolve_range, survey
from hardpatch.errors import UserError


def open_images(run: RunConfig) -> OpenedSource:
    """Open the images of a run.

    Raises:
        UserError: if there are none.
    """
    try:
        return as_read(open_source(run.data.path, run.data.columns), initial_reading(run))
    except UserError as error:
        raise UserError(f"--data: {error}") from None


class Images(NamedTuple):
    """Reading and statistics of the images of a run."""

    reading: Reading
    mean: list[float]
    std: list[float]
    notes: tuple[str, ...] = ()
    """what was found and decided, a line each"""


def initial_reading(run: RunConfig) -> Reading:
    """Return what the settings say before an image is seen."""
    data = run.data
    red, green, blue = data.background
    bands = tuple(data.bands or ())
    return Reading(pages=data.pages, bands=bands, background=(red, green, blue), max_pixels=data.max_pixels)


def resolve_reading(run: RunConfig, source: Source) -> tuple[Reading, list[str]]:
    """Look at the images of a run, and settle channels, type and range. Also returns what was found, a line each.

    Raises:
        UserError: if a setting does not fit the images, or none can be decoded.
    """
    initial = initial_reading(run)
    found = survey(source, initial)
    channels = resolve_channels(run.data.channels, found)
    reading, measured = resolve_range(run.data.range, source, found, initial.with_channels(channels))
    check_decodable(source, reading)
    return reading, [f"--data: {found.images} images looked at: {found.describe()}", *measured]


def resolve(run: RunConfig, source: Source) -> Images:
    """Look at the images of a run, and settle channels, type, range, mean and standard deviation.

    Raises:
        UserError: if a setting does not fit the images.
    """
    data = run.data
    reading, notes = resolve_reading(run, source)

    def compute() -> tuple[tuple[float, ...], tuple[float, ...]]:
        notes.append("mean and standard deviation are computed on the images")
        return channel_statistics(source, reading, run.seed)

    photographs = reading.number == 3 and reading.dtype == "uint8"
    given = (data.mean, data.std)
    init = run.init
    if (
        given == ("auto", "auto")
        and init.mean is not None
        and init.std is not None
        and len(init.mean) == reading.number
    ):
        given = (init.mean, init.std)
        notes.append("mean and standard deviation are those of the weights that training starts from")
    statistics = resolve_statistics(given[0], given[1], compute, photographs)
    for name, setting, values in zip(("mean", "std"), (data.mean, data.std), statistics, strict=True):
        if len(values) != reading.number:
            raise UserError(
                f"data.{name}: expected {reading.number} numbers, one for each channel of the images, got {setting}; "
                "use computed"
            )
    return Images(reading, *statistics, tuple(notes))
