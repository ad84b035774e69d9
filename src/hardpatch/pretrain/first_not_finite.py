"""Search for the module that makes the first NaN or infinity of a step, in its forward or its backward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


class Values(NamedTuple):
    """Range of a tensor."""

    shape: list[int]
    low: float
    """of the finite values; NaN if there are none"""
    high: float
    bad: int
    """values that are NaN or infinite"""

    def __str__(self) -> str:
        total = torch.Size(self.shape).numel()
        bad = f"  {self.bad:,} of {total:,} values are NaN or infinite" if self.bad else ""
        return f"{self.shape}  from {self.low:.4g} to {self.high:.4g}{bad}"


class Culprit(NamedTuple):
    """Module whose output is NaN or infinite although its input is finite; in the backward pass, of gradients."""

    module: str
    """qualified name, the student's or the teacher's first"""
    kind: str
    """class of the module"""
    during: Literal["forward", "backward"]
    inputs: list[Values]
    outputs: list[Values]
    parameter: str | None = None
    """the parameter whose gradient it is; None for the gradient of an input, and in the forward pass"""
    largest: list[tuple[int, float]] = []  # noqa: RUF012 - never changed
    """row and largest magnitude of the samples with the largest values, the largest first"""


@dataclass
class _Call:
    """A call of a module: which of its gradients have come."""

    name: str
    kind: str
    gradients: list[Tensor] = field(default_factory=list)
    """of the outputs"""


class FirstNotFinite:
    """Watches modules, as a context manager, and keeps the first :class:`Culprit`.

    Args:
        networks: by name, the first part of the names of their modules.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.culprit: Culprit | None = None
        self.entered: str | None = None
        """first module whose input was not finite already"""
        self._networks = networks
        self._handles: list[Any] = []
        self._calls: dict[int, list[_Call]] = {}

    def __enter__(self) -> "FirstNotFinite":
        for prefix, network in self._networks.items():
            for name, module in network.named_modules():
                self._watch(f"{prefix}.{name}" if name else prefix, module)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, module: nn.Module) -> None:
        calls = self._calls.setdefault(id(module), [])

        def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            calls.append(call := _Call(name, type(module).__name__))
            return tree_map(lambda value: self._own_input(call, value), (args, kwargs))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._see(calls[-1], _floats((args, kwargs)), _floats(output))

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True))
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:

                def of_parameter(gradient: Tensor, own: str = own) -> None:
                    for call in calls:
                        self._see_gradient(call, gradient, own)

                self._handles.append(parameter.register_hook(of_parameter))

    def _own_input(self, call: _Call, value: Any) -> Any:
        """Give a call an input of its own, whose gradient comes from it alone."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        own = value.view_as(value)
        own.register_hook(lambda gradient: self._see_gradient(call, gradient))
        return own

    def _see(self, call: _Call, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for value in outputs:
            if value.requires_grad:
                value.register_hook(call.gradients.append)
        if self.culprit is not None:
            return
        if not _finite(inputs):
            self.entered = self.entered or call.name
        elif not _finite(outputs):
            bad = next(value for value in outputs if not _finite([value]))
            self.culprit = Culprit(
                *(call.name, call.kind, "forward", list(map(values, inputs)), list(map(values, outputs))),
                largest=largest_rows(bad),
            )

    def _see_gradient(self, call: _Call, gradient: Tensor, parameter: str | None = None) -> None:
        if self.culprit is None and call.gradients and not _finite([gradient]) and _finite(call.gradients):
            self.culprit = Culprit(
                *(call.name, call.kind, "backward", list(map(values, call.gradients)), [values(gradient)], parameter),
                largest=[] if parameter else largest_rows(gradient),
            )


def _floats(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in tensors)


@torch.no_grad()
def values(tensor: Tensor) -> Values:
    """Measure the range of a tensor."""
    number = tensor.detach().float()
    good = number[number.isfinite()]
    low, high = (good.min().item(), good.max().item()) if len(good) else (float("nan"), float("nan"))
    return Values(list(tensor.shape), low, high, number.numel() - len(good))


@torch.no_grad()
def largest_rows(tensor: Tensor, count: int = 3) -> list[tuple[int, float]]:
    """Return the rows of ``tensor [B, ...]`` with the largest magnitudes; NaN and infinity are the largest."""
    if tensor.ndim == 0:
        return []
    magnitudes = tensor.detach().float().abs().reshape(len(tensor), -1)
    rows = magnitudes.nan_to_num(nan=float("inf")).amax(dim=1)
    order = rows.argsort(descending=True, stable=True)[:count]
    return [(int(row), float(magnitudes[row].max())) for row in order]
