"""A look at every image before training. ``hardpatch.check(...)`` is :func:`hardpatch.check.run.check`."""

from hardpatch.callable_package import make_callable

make_callable(__name__)
