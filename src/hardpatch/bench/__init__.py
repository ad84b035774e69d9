"""Benchmark of a training step against other libraries, and of data loading: `hardpatch bench`."""
