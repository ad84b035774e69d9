"""Tensors that are divided among processes, on the disk: each process writes its own parts, which are then merged.

`torch.distributed.checkpoint` writes them as safetensors files; its own format has an index that is a pickle.
"""

import errno
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hardpatch.processes import saving_group


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the parts of divided tensors into one file for each process. All processes must call it.

    Args:
        folder: on a disk that all processes share.
        tensors: divided ones, of which each process writes its part; others, of which one process writes the whole.

    Raises:
        OSError: if a process could not write, in all of them.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            process_group=saving_group(),
        )
    except CheckpointException as error:
        reasons = [reason for reason, _ in error.failures.values()]
        raise next((reason for reason in reasons if isinstance(reason, OSError)), error) from None


def merge_parts(folder: Path, *contents: dict[str, Tensor]) -> None:
    """Replace divided tensors by whole ones on the host, put together from the files of all processes.

    Args:
        folder: of :func:`write_parts`.
        contents: the tensors that were written, by name; changed in place.

    Raises:
        OSError: if a part is missing.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    parts: dict[Any, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().storage_data
    found = Counter[str]()
    for part, file in parts.items():
        found[part.fqn] += file.shape.numel()
    whole = {}
    for name, value in (item for content in contents for item in content.items()):
        if found[name] != value.numel():
            raise OSError(
                errno.ENOENT,
                f"{found[name]:,} of {value.numel():,} values of {name} were found in {folder.parent}; the folder of "
                "a run has to be on a disk that all machines share",
            )
        whole[name] = torch.empty(value.shape, dtype=value.dtype)
    for path in sorted({file.relative_path for file in parts.values()}):
        with safe_open(path, "pt") as opened:
            for part, file in parts.items():
                if file.relative_path == path:
                    place = tuple(map(slice, part.offset, map(sum, zip(part.offset, file.shape, strict=True))))
                    whole[part.fqn][place] = opened.get_tensor(part.fqn)
    for content in contents:
        content.update({name: whole[name] for name in content})
