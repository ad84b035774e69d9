"""Weights on the Hugging Face Hub, by name: ``hf:OWNER/NAME``, and ``timm:NAME`` for those that timm knows."""

import re
from functools import cache
from pathlib import Path

from hardpatch.errors import UserError, did_you_mean
from hardpatch.interchange.tensors import CONFIGS, FILES

HF, TIMM = "hf:", "timm:"
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
"""OWNER/NAME, and optionally a revision"""


def is_hub_name(run: str) -> bool:
    """Return whether a text names weights on the hub."""
    return run.startswith((HF, TIMM))


@cache  # each file of a repository is a question over the network
def fetch(name: str) -> Path:
    """Return the folder of the files that belong to weights on the hub; those in the hub's cache are not fetched again.

    Args:
        name: ``hf:OWNER/NAME``, ``hf:OWNER/NAME@REVISION`` or ``timm:NAME``.

    Raises:
        UserError: if there is no such name, or the hub cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    repository = name.removeprefix(HF) if name.startswith(HF) else _of_timm(name.removeprefix(TIMM))
    match = REPOSITORY.fullmatch(repository)
    if match is None:
        raise UserError(f"RUN: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got {name}")
    repository, revision = match.groups()
    try:
        weights = next((file for name in FILES if (file := _file(repository, revision, name)) is not None), None)
        if weights is not None:
            for config in CONFIGS:
                _file(repository, revision, config)
            return _with_parts(weights, repository, revision)
        reason = f"it has none of {', '.join(FILES)}, or the hub cannot be reached and its cache has none"
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
    raise UserError(
        f"RUN: {name} cannot be fetched from the hub ({reason}); fetch {repository} into a folder where the network "
        "allows, and name that folder"
    )


def _file(repository: str, revision: str | None, name: str) -> Path | None:
    """Fetch a file of a repository; None if it has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except EntryNotFoundError:  # also if the hub cannot be reached and its cache has no such file
        return None


def _with_parts(weights: Path, repository: str, revision: str | None) -> Path:
    """Fetch the parts that an index names, too, and return the folder of all."""
    from huggingface_hub import snapshot_download

    if weights.name.endswith(".index.json"):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*CONFIGS, "model*.safetensors*"]))
    return weights.parent


def _of_timm(name: str) -> str:
    """Return the repository of a network of timm with pre-trained weights.

    Raises:
        UserError: if timm has none of that name.
    """
    import timm

    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # a network of timm, and no weights of that name
        config = None
    if config is None:
        raise UserError(f"RUN: timm has no network named {name}{did_you_mean(name, timm.list_pretrained())}")
    if not config.hf_hub_id:
        raise UserError(f"RUN: timm has no weights of {name} on the hub; fetch its file and name that")
    return str(config.hf_hub_id)
