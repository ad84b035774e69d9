"""torch.compile of a training step's two large parts: the teacher, and the student's forward with its losses.

Masks are made between the two, uncompiled: that takes little, and its shapes change as ever more patches are mined.
"""

import sysconfig
from pathlib import Path
from typing import Any

import torch

from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM
from hardpatch.methods.teacher import Teacher


def compile_parts(
    model: HPM, teacher: Teacher | None, device: torch.device, *, cuda_graphs: bool = False, backend: str = "inductor"
) -> None:
    """Compile student and teacher in place, each as one graph of fixed shapes, when they are first called.

    The modules stay as they are, names of weights included, and so does all that is called on them in other ways:
    ``model(images, ...)`` and ``teacher(images)`` run compiled. Precision is that of the first call.

    Args:
        model: the student.
        teacher: its moving average.
        device: of both.
        cuda_graphs: replay the kernels of a call together; what a call gives then holds until the next step begins, see
            :func:`begin_step`.
        backend: of torch.compile.

    Raises:
        UserError: if something is missing for it here.
    """
    if backend == "inductor":
        check_compiler(device, cuda_graphs)
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
    if backend == "inductor":
        # Drop path draws the same numbers as uncompiled; graphs are what mode "reduce-overhead" stands for.
        options["options"] = {"fallback_random": True, "triton.cudagraphs": cuda_graphs}
    model.compile(**options)
    if teacher is not None:
        teacher.network.forward_whole = torch.compile(teacher.network.forward_whole, **options)


def begin_step() -> None:
    """What CUDA graphs gave in the step before is no longer needed."""
    torch.compiler.cudagraph_mark_step_begin()


def check_compiler(device: torch.device, cuda_graphs: bool = False) -> None:
    """Refuse what cannot be compiled here.

    Raises:
        UserError: names the setting and what is missing.
    """
    if cuda_graphs and device.type != "cuda":
        raise UserError(f"train.compile: cuda_graphs needs a CUDA device, got {device.type}; use yes or no")
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError("train.compile: needs Triton on a GPU, and torch finds none; install it, or use no")
    elif device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError:
            raise UserError(
                "train.compile: needs a C++ compiler on a CPU, and there is none; install g++ or set CXX, or use no"
            ) from None
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        if not header.is_file():
            raise UserError(f"train.compile: needs {header}, part of Python's development files; add them, or use no")
    else:
        raise UserError(f"train.compile: expected a CPU or a CUDA device, got {device.type}; use no")
