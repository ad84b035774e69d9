"""Weights for other libraries. ``hardpatch.export(...)`` is :func:`hardpatch.export.run.export`."""

from hardpatch.callable_package import make_callable

make_callable(__name__)
