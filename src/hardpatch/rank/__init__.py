"""Difficulty of whole images, and anomalies. ``hardpatch.rank(...)`` is :func:`hardpatch.rank.run.rank`."""

from hardpatch.callable_package import make_callable

make_callable(__name__)
