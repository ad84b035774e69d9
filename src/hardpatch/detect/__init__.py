"""Object detection. ``hardpatch.detect(...)`` is :func:`hardpatch.detect.run.detect`."""

from hardpatch.callable_package import make_callable

make_callable(__name__)
