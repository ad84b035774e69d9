"""The viewer: a page on this machine on which masks, reconstructions and difficulty of images follow sliders.

``hardpatch.view(...)`` is :func:`hardpatch.view.run.view`.
"""

from hardpatch.callable_package import make_callable

make_callable(__name__)
