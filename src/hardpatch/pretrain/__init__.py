"""Pre-training. ``hardpatch.pretrain(...)`` is :func:`hardpatch.pretrain.run.pretrain`."""

from hardpatch.callable_package import make_callable

make_callable(__name__)
