"""Hard Patches Mining: masked image modelling in which the model also decides what to mask."""

__version__ = "0.1.0"
