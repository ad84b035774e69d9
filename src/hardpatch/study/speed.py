"""Speed of a row's training step beside that of HPM with the decoders of the scale (Table S4)."""

import statistics
from dataclasses import replace
from typing import Any

from hardpatch.bench.contenders import noise_batch, prepare_contender
from hardpatch.bench.timing import first_turn, take_turns
from hardpatch.study.plan import HPM_ROW, NO_TABLE, Study, Task
from hardpatch.study.scales import SCALES, configure
from hardpatch.train.device import start_fabric

BATCH = 32
"""Images of a step, as in the paper (a GPU)."""

TURNS = 7


def speedup(study: Study, task: Task) -> dict[str, Any]:
    """Time steps of both in turns, in one process, and return the median ratio with what it was computed from."""
    run = replace(task.run, batch_size=BATCH)
    default = configure(NO_TABLE, HPM_ROW, SCALES[study.scale], data=study.data, settings=study.settings)
    fabric = start_fabric(run.train.device, run.train.precision, "train.")
    batch = noise_batch(run, fabric.device)
    timed = []
    for each in (replace(default, batch_size=BATCH), run):
        contender = prepare_contender("hpm", each, fabric, batch)
        timed.append(first_turn(contender.step, fabric.device, 0))
    take_turns(timed, TURNS, fabric.device)
    ratios = [base / own for base, own in zip(timed[0].seconds, timed[1].seconds, strict=True)]
    return {
        "speedup": statistics.median(ratios),
        "ratios": ratios,
        "seconds": [statistics.median(each.seconds) for each in timed],
        "batch_size": BATCH,
    }
