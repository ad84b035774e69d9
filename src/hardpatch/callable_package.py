"""Packages that are called like the verb they are named after: ``hardpatch.pretrain(...)``."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str) -> None:
    """Let a package be called: that is its function of the same name in its module ``run``.

    ``hardpatch.pretrain(...)`` and ``hardpatch.pretrain.run`` then both work, and nothing is imported before it is
    needed.
    """
    verb = package.rsplit(".", 1)[-1]

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.__wrapped__(*args, **kwargs)

        @property
        def __wrapped__(self) -> Any:  # where `inspect` finds the signature
            return getattr(import_module(f"{package}.run"), verb)

    sys.modules[package].__class__ = CallablePackage
