"""The command line: each verb parses its arguments, calls one function and prints the result.

Exit codes: 0 done, 2 the user's mistake (one line on stderr), 1 a fault or a set that `check` found to be refused,
128 + n interrupted by signal n.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from importlib import import_module

from hardpatch import __version__
from hardpatch.busy import give_way
from hardpatch.errors import TrainingError, UserError, did_you_mean
from hardpatch.files import UNWRITABLE, reason_of
from hardpatch.printable import lasting_output, printable, say
from hardpatch.processes import launched
from hardpatch.transcript import transcript

USAGE = """\
usage: hardpatch VERB ...

Hard Patches Mining: self-supervised pre-training of Vision Transformers that also learn what to mask.

  pretrain   pre-train on images without labels        hardpatch pretrain --data IMAGES [--hours H | --recipe NAME]
  plan       choose a training for images and a time   hardpatch plan IMAGES --hours 2
  tokenizer  train visual tokens for host beit         hardpatch tokenizer --data IMAGES --out DIR
  knn        k-NN accuracy of a run's features         hardpatch knn RUN --train IMAGES --val IMAGES
  linear     linear probe on a run's features          hardpatch linear RUN --train IMAGES --val IMAGES
  embed      write one vector for each image           hardpatch embed RUN IMAGES... --out FILE.parquet
  finetune   train a run's encoder on labeled images   hardpatch finetune RUN --train IMAGES --val IMAGES --out DIR
  segment    classify every pixel, with UperNet        hardpatch segment RUN --train DIR --val DIR --out DIR
  detect     detect objects, with Mask R-CNN           hardpatch detect RUN --train DIR --annotations JSON ... --out DIR
  predict    predict by what these three trained       hardpatch predict RUN IMAGES... --out FILE
  evaluate   several measurements, as one table        hardpatch evaluate RUN --suite FILE --out DIR
  score      difficulty of image patches               hardpatch score RUN IMAGES... --out DIR
  rank       images by difficulty, duplicates, outliers hardpatch rank RUN IMAGES... --out DIR
  anomalies  defects, by the loss of normal images     hardpatch anomalies RUN IMAGES... --train NORMAL --out DIR
  check      look at a set of images before training   hardpatch check IMAGES [--labels]
  stats      mean, deviation and range of all images   hardpatch stats IMAGES
  shrink     write smaller copies of images            hardpatch shrink IMAGES... --side 256 --out DIR
  shard      pack images into tar shards               hardpatch shard IMAGES... --out DIR
  bench      training speed, and of other libraries    hardpatch bench [--recipe NAME] [--contenders A,B,...]
  study      train the rows of the paper's tables      hardpatch study table2 --data IMAGES --val IMAGES --out DIR
  report     show runs as one page, with curves        hardpatch report RUN [RUN...] --out FILE.html
  view       serve a page: masks follow sliders        hardpatch view RUN [RUN]
  export     write weights for timm or Hugging Face    hardpatch export RUN --to timm --out FILE.safetensors
  replay     find what made a step NaN                 hardpatch replay RUN/dumps/step_00000048
  info       describe a run or a weights file          hardpatch info RUN
  recipes    list the named runs                       hardpatch recipes [NAME]
  formats    list the formats that can be read here    hardpatch formats

`hardpatch VERB --help` lists its options and shows examples; `hardpatch --print_completion bash` (zsh, fish) prints a
script that completes them. RUN is a run folder, or weights of timm, Hugging Face, MAE or DINO. IMAGES is a folder
(flat, a tree or one folder per class), a Parquet, CSV, .zip or .tar file, shards, a pattern in quotes, or demo:train
or demo:test, the embedded set.
"""

VERBS = {
    "pretrain": "pretrain",
    "plan": "plan",
    "tokenizer": "tokenizer",
    "knn": "evaluate",
    "linear": "evaluate",
    "embed": "embed",
    "finetune": "finetune",
    "segment": "segment",
    "detect": "detect",
    "predict": "predict",
    "evaluate": "suite",
    "score": "score",
    "rank": "rank",
    "view": "view",
    "anomalies": "anomalies",
    "check": "check",
    "stats": "stats",
    "shrink": "shrink",
    "shard": "shard",
    "bench": "bench",
    "study": "study",
    "report": "report",
    "export": "export",
    "replay": "replay",
    "info": "inspect",
    "recipes": "inspect",
    "formats": "formats",
}
"""Verbs, and the module of this package with the function of that name, imported only when the verb runs."""

DISTRIBUTED = ("pretrain", "finetune", "segment", "detect", "tokenizer", "knn", "linear")
"""Verbs that can run in several processes."""


TRAINING = ("pretrain", "tokenizer", "finetune", "segment", "detect", "study", "evaluate")
"""Verbs whose results are files: they are done, although what they print is lost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code."""
    if arguments is None:  # a program of its own, whose environment is ours
        give_way()
        arguments = sys.argv[1:]
    arguments = list(arguments)
    with lasting_output() as out:
        if isinstance(out.stream, io.TextIOWrapper):
            out.reconfigure(errors="backslashreplace")  # names that are no text, and terminals of few characters
        code = _run(arguments)
        out.flush()
        lost = out.error
        if code or lost is None or lost.errno in (errno.EPIPE, errno.EIO):  # nobody reads any more
            return code
        print(f"hardpatch: cannot write to stdout: {reason_of(lost)}", file=sys.stderr)
        return 0 if arguments and arguments[0] in TRAINING else 1


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"hardpatch {__version__}")
        return 0
    if arguments[0].split("=")[0] == "--print_completion":
        return _print_completion(arguments)
    verb, *rest = arguments
    with transcript() if verb in TRAINING else nullcontext():
        if launched().rank == 0:
            return _call(verb, rest)
        with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):  # the first process says it
            return _call(verb, rest)


def _print_completion(arguments: Sequence[str]) -> int:
    """Print the completion script of a shell."""
    from hardpatch.cli.completion import script

    try:
        shell = [*arguments[0].split("=", 1), *arguments[1:], ""][1]
        print(script(shell, VERBS), end="")
    except UserError as error:
        print(f"hardpatch: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


def _call(verb: str, rest: list[str]) -> int:
    """Call the function of a verb, and print its error as one line."""
    try:
        if verb not in VERBS:
            raise UserError(f"no such verb{did_you_mean(verb, list(VERBS)) or '; see hardpatch --help'}")
        if verb not in DISTRIBUTED and refuses_processes(verb):
            return 2
        return getattr(import_module(f"hardpatch.cli.{VERBS[verb]}"), verb)(rest)
    except UserError as error:
        complain(verb, error)
        return 2
    except TrainingError as error:
        complain(verb, error)
        return 1
    except OSError as error:
        if error.errno not in UNWRITABLE or not error.filename:
            raise
        reason = f"cannot write {error.filename}: {reason_of(error)}"
        complain(verb, OSError(f"{reason}; make room there, then run it again"))
        return 1 if verb in TRAINING else 2
    except KeyboardInterrupt:
        return 130


def complain(verb: str, error: Exception) -> None:
    """Print an error as one line; of several processes, one on each machine does."""
    own = launched()
    if own.local_rank == 0:
        where = f" (process {own.rank} of {own.world_size})" if own.rank else ""
        say(f"hardpatch {verb}{where}: {printable(str(error))}", error=True)


def refuses_processes(verb: str) -> bool:
    """Return whether there are several processes, and print, in the first only, that a verb runs in one."""
    own = launched()
    if own.world_size > 1 and own.rank == 0:
        print(
            f"hardpatch {verb}: WORLD_SIZE: expected 1 process, got {own.world_size}; this verb runs in one process "
            "only, start it without torchrun or srun",
            file=sys.stderr,
        )
    return own.world_size > 1
