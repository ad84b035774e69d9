"""Semantic segmentation. ``hardpatch.segment(...)`` is :func:`hardpatch.segment.run.segment`."""

from hardpatch.callable_package import make_callable

make_callable(__name__)
