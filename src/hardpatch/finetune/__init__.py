"""Fine-tuning. ``hardpatch.finetune(...)`` is :func:`hardpatch.finetune.run.finetune`."""

from hardpatch.callable_package import make_callable

make_callable(__name__)
