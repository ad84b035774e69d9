"""The page of a study: its facts and all of its tables."""

import re
from collections.abc import Sequence

from hardpatch import __version__
from hardpatch.files import write_text_atomically
from hardpatch.printable import printable
from hardpatch.study.plan import Study
from hardpatch.study.rows import Table, names, order
from hardpatch.study.scales import SCALES
from hardpatch.study.table import markdown
from hardpatch.study.values import RowResult

PAGE = """# Study at scale {scale}

Made by `{command}` (hardpatch {version}).

- scale {scale}: {about}
- seeds for each run: {seeds}
- trained on `{data}`; k-NN, linear probe and fine-tuning learn from `{train}` and are evaluated on `{val}`
- runs of all tables with the same settings are one run; folder `runs/` has them

To resume an interrupted study, run the same command. It skips what is done. Other tables can be added to this folder
with `hardpatch study TABLE --out` and the same other arguments.

| file | content |
|---|---|
| `TABLE/table.md` | the table, with the paper's figures beside ours |
| `TABLE/table.json` | the same for programs, with the values of every seed |
| `TABLE/table.png` | the same as a picture |
| `runs/NAME/seed_K/` | a run folder, for `hardpatch info`, `knn`, `linear`, `score` and all other verbs that take RUN |
| `runs/NAME/seed_K/measurements.json` | its metrics, for all k and all learning rates, and the seconds that they took |

k-NN is that of the best k and the quick linear probe that of the best learning rate. Both are chosen on the images that
the row is evaluated on, as is common practice.

"""


def write_page(study: Study, results: Sequence[tuple[Table, Sequence[RowResult]]]) -> None:
    """Write ``README.md`` with these tables, and with those that other calls have left in the folder."""
    scale = SCALES[study.scale]
    facts = PAGE.format(
        scale=study.scale,
        command=printable(study.command),
        version=__version__,
        about=scale.about,
        seeds=study.seeds,
        data=study.data,
        train=study.train,
        val=study.val,
    )
    texts = {table.name: markdown(study, table, rows, "##") for table, rows in results}
    for name in names():
        path = study.out / name / "table.md"
        if name not in texts and path.is_file():
            texts[name] = re.sub("^#", "##", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = [texts[name] for name in sorted(texts, key=order)]
    write_text_atomically(study.out / "README.md", facts + "\n".join(text))
