"""Predictions of fine-tuned networks. ``hardpatch.predict(...)`` is :func:`hardpatch.predict.run.predict`."""

from hardpatch.callable_package import make_callable

make_callable(__name__)
