"""Hard Patches Mining: masked image modeling in which the model also decides what to mask."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardpatch.interchange.load import load
    from hardpatch.methods.beit import BEiT
    from hardpatch.methods.hpm import HPM
    from hardpatch.methods.ibot import IBOT
    from hardpatch.methods.mae import MAE
    from hardpatch.methods.simmim import SimMIM

__version__ = "0.1.0"
__all__ = ["HPM", "IBOT", "MAE", "BEiT", "SimMIM", "__version__", "load"]

_HOME = {
    "load": "interchange.load",
    "HPM": "methods.hpm",
    "MAE": "methods.mae",
    "SimMIM": "methods.simmim",
    "BEiT": "methods.beit",
    "IBOT": "methods.ibot",
}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for: `hardpatch --help` answers at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'hardpatch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hardpatch.{_HOME[name]}"), name)
