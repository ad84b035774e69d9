"""The folder of a run: what is written into it before the first step, and whether a run in it may go on."""

from collections.abc import Sequence
from pathlib import Path

from hardpatch.pretrain import config
from hardpatch.pretrain.sections import RunConfig
from hardpatch.train.run_folder import read_values, refuse_changes, write_files

FREE_TO_CHANGE = ("train.", "knn.", "data.workers", "data.max_bad_fraction")
"""Settings that a run may change when it goes on: they do not decide what is learned."""

README = """# A hardpatch run

Made by `{command}`.

| file | what |
|---|---|
| `config.yaml` | every setting; `hardpatch pretrain --config` reads it |
| `environment.json` | versions and hardware |
| `metrics.jsonl` | losses, learning rate, alpha and the vital signs of the miner, a JSON object a line |
| `tensorboard/` | the same for `tensorboard --logdir` |
| `checkpoints/` | `step_*/model.safetensors`: weights of student and teacher; `training.safetensors`: optimizer |
| `pictures/` | curves, and where the model finds images hard |

What to do with it:

    hardpatch info {folder}
    hardpatch knn {folder} --train LABELLED_IMAGES --val LABELLED_IMAGES
    hardpatch linear {folder} --train LABELLED_IMAGES --val LABELLED_IMAGES
    hardpatch score {folder} IMAGES --out PICTURES
    hardpatch pretrain --resume --out {folder}

In Python, `hardpatch.load("{folder}")` gives the model.
"""


def read_config(folder: Path) -> RunConfig:
    """The configuration that a run folder was made with.

    Raises:
        UserError: if there is none.
    """
    return config.build(read_values(folder))


def check_resume(folder: Path, run: RunConfig) -> None:
    """Refuse to go on with other settings than a run began with.

    Raises:
        UserError: names every setting that differs, with both values.
    """
    changed = {
        name: values
        for name, values in config.differences(read_config(folder), run).items()
        if not name.startswith(FREE_TO_CHANGE)
    }
    refuse_changes(folder, changed)


def write(folder: Path, run: RunConfig, arguments: Sequence[str]) -> None:
    """Write ``config.yaml``, ``environment.json`` and a README, each whole or not at all.

    Raises:
        UserError: if the folder cannot be made.
    """
    write_files(folder, config.to_yaml(run), arguments, README)
