"""Compile the two large parts of a training step: the teacher, and the student's forward pass with its losses.

Mask generation between the two is not compiled: it is cheap, and its shapes change as more patches are mined.
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

    Call it before they are set up for several processes.

    ``model(images, ...)`` and ``teacher(images)`` run compiled, in the precision of the first call. All other methods
    and the names of the weights do not change.

    Args:
        model: the student.
        teacher: its moving average.
        device: of both.
        cuda_graphs: record the kernels of a call as a CUDA graph; its outputs are then valid until the next step, see
            :func:`begin_step`.
        backend: of torch.compile.

    Raises:
        UserError: if this machine cannot compile.
    """
    if backend == "inductor":
        check_compiler(device, cuda_graphs)
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
    if backend == "inductor":
        # Drop path draws the same numbers as uncompiled; graphs are what mode "reduce-overhead" stands for.
        options["options"] = {"fallback_random": True, "triton.cudagraphs": cuda_graphs}
    # what the processes exchange before and after a call stays out of the graph
    model.forward = torch.compile(model.forward, **options)  # type: ignore[method-assign]
    if teacher is not None:
        teacher.network.forward_whole = torch.compile(teacher.network.forward_whole, **options)


def begin_step() -> None:
    """Tell CUDA graphs that the outputs of the previous step are no longer needed."""
    torch.compiler.cudagraph_mark_step_begin()


def check_compiler(device: torch.device, cuda_graphs: bool = False) -> None:
    """Check that this machine can compile.

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
