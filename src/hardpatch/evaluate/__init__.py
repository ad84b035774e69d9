"""Measurements of a run's frozen features and of its difficulty; the functions are in :mod:`hardpatch.evaluate.run`."""
