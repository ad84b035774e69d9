"""The command line: each verb parses its arguments, calls one function and prints what came of it.

Exit codes: 0 done, 2 the user's mistake (one line on stderr), 1 a fault, 128 + n interrupted by signal n.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from hardpatch import __version__
from hardpatch.errors import TrainingError, UserError

USAGE = """\
usage: hardpatch VERB ...

Hard Patches Mining: self-supervised pre-training of Vision Transformers that also learn what to mask.

  pretrain   train on images without labels            hardpatch pretrain --recipe cifar10_tiny --data IMAGES
  tokenizer  visual tokens for the host beit           hardpatch tokenizer --data IMAGES --out FILE.safetensors
  knn        k-NN accuracy of a run's features         hardpatch knn RUN --train IMAGES --val IMAGES
  linear     linear probe on a run's features          hardpatch linear RUN --train IMAGES --val IMAGES
  embed      one vector for each image                 hardpatch embed RUN IMAGES... --out FILE.parquet
  finetune   train a run's encoder under labels        hardpatch finetune RUN --train IMAGES --val IMAGES --out DIR
  segment    a class for every pixel, with UperNet     hardpatch segment RUN --train DIR --val DIR --out DIR
  detect     boxes and masks of objects, Mask R-CNN    hardpatch detect RUN --train DIR --annotations JSON ... --out DIR
  evaluate   several of these, as one table            hardpatch evaluate RUN --suite FILE --out DIR
  score      where the model finds images hard         hardpatch score RUN IMAGES... --out DIR
  shrink     a set made smaller, as Parquet            hardpatch shrink IMAGES... --side 256 --out DIR
  bench      how fast a step is, beside others         hardpatch bench [--recipe NAME] [--contenders A,B,...]
  study      the paper's tables as runs                hardpatch study table2 --data IMAGES --val IMAGES --out DIR
  export     weights for timm or Hugging Face          hardpatch export RUN --to timm --out FILE.safetensors
  info       what a run or a weights file is           hardpatch info RUN
  recipes    the named runs                            hardpatch recipes [NAME]

`hardpatch VERB --help` tells more. RUN is a run folder, a .safetensors file or a reference checkpoint; IMAGES a folder
(flat, a tree or one folder a class), Parquet files, or demo:train and demo:test, the embedded set.
"""

VERBS = {
    "pretrain": "pretrain",
    "tokenizer": "tokenizer",
    "knn": "evaluate",
    "linear": "evaluate",
    "embed": "embed",
    "finetune": "finetune",
    "segment": "segment",
    "detect": "detect",
    "evaluate": "suite",
    "score": "score",
    "shrink": "shrink",
    "bench": "bench",
    "study": "study",
    "export": "export",
    "info": "inspect",
    "recipes": "inspect",
}
"""A verb and the module of this package that has the function of that name, imported only when the verb runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"hardpatch {__version__}")
        return 0
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            from hardpatch.errors import did_you_mean

            raise UserError(f"no such verb{did_you_mean(verb, list(VERBS)) or '; see hardpatch --help'}")
        return getattr(import_module(f"hardpatch.cli.{VERBS[verb]}"), verb)(rest)
    except UserError as error:
        print(f"hardpatch {verb}: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"hardpatch {verb}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130
