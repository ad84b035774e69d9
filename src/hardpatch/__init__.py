"""Hard Patches Mining: masked image modeling in which the model also decides what to mask."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardpatch.check.run import check
    from hardpatch.check.stats import stats
    from hardpatch.data.formats import formats
    from hardpatch.detect.file import load_detector
    from hardpatch.detect.run import detect
    from hardpatch.evaluate.difficulty import score
    from hardpatch.evaluate.embed import embed
    from hardpatch.evaluate.probes import knn, linear
    from hardpatch.export.run import export
    from hardpatch.finetune.file import load_classifier
    from hardpatch.finetune.run import finetune, train_linear_probe
    from hardpatch.interchange.load import load
    from hardpatch.methods.beit import BEiT
    from hardpatch.methods.hpm import HPM
    from hardpatch.methods.ibot import IBOT
    from hardpatch.methods.mae import MAE
    from hardpatch.methods.simmim import SimMIM
    from hardpatch.predict.load import load_finetuned
    from hardpatch.predict.run import predict
    from hardpatch.pretrain.planning import plan
    from hardpatch.pretrain.replay import replay
    from hardpatch.pretrain.run import pretrain
    from hardpatch.pretrain.tokenizer_run import train_tokenizer
    from hardpatch.rank.anomalies import anomalies
    from hardpatch.rank.run import rank
    from hardpatch.segment.file import load_segmenter
    from hardpatch.segment.run import segment
    from hardpatch.view.run import view

__version__ = "0.1.0"
__all__ = [
    "HPM",
    "IBOT",
    "MAE",
    "BEiT",
    "SimMIM",
    "__version__",
    "anomalies",
    "check",
    "detect",
    "embed",
    "export",
    "finetune",
    "formats",
    "knn",
    "linear",
    "load",
    "load_classifier",
    "load_detector",
    "load_finetuned",
    "load_segmenter",
    "plan",
    "predict",
    "pretrain",
    "rank",
    "replay",
    "score",
    "segment",
    "stats",
    "train_linear_probe",
    "train_tokenizer",
    "view",
]

# The packages check, export, pretrain, finetune, segment, detect, predict, rank and view are called themselves.
_HOME = {
    "anomalies": "rank.anomalies",
    "embed": "evaluate.embed",
    "formats": "data.formats",
    "knn": "evaluate.probes",
    "linear": "evaluate.probes",
    "load": "interchange.load",
    "load_classifier": "finetune.file",
    "load_detector": "detect.file",
    "load_finetuned": "predict.load",
    "load_segmenter": "segment.file",
    "plan": "pretrain.planning",
    "replay": "pretrain.replay",
    "score": "evaluate.difficulty",
    "stats": "check.stats",
    "train_linear_probe": "finetune.run",
    "train_tokenizer": "pretrain.tokenizer_run",
    "HPM": "methods.hpm",
    "MAE": "methods.mae",
    "SimMIM": "methods.simmim",
    "BEiT": "methods.beit",
    "IBOT": "methods.ibot",
}
_CALLABLE = ("check", "detect", "export", "finetune", "predict", "pretrain", "rank", "segment", "view")


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for: `hardpatch --help` answers at once."""
    from importlib import import_module

    if name in _CALLABLE:
        return import_module(f"hardpatch.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'hardpatch' has no attribute {name!r}")
    return getattr(import_module(f"hardpatch.{_HOME[name]}"), name)
