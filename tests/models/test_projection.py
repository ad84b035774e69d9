import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from hardpatch.models.projection import ProjectionHead


def small(layers: int = 3) -> ProjectionHead:
    torch.manual_seed(0)
    return ProjectionHead(12, 20, hidden=32, bottleneck=8, layers=layers)


def test_defaults_are_those_of_ibot() -> None:
    head = ProjectionHead(768)
    assert {name: list(p.shape) for name, p in head.named_parameters()} == {
        "mlp.0.weight": [2048, 768],
        "mlp.0.bias": [2048],
        "mlp.2.weight": [2048, 2048],
        "mlp.2.bias": [2048],
        "mlp.4.weight": [256, 2048],
        "mlp.4.bias": [256],
        "last.weight": [8192, 256],
    }
    for name, p in head.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif name.startswith("mlp"):
            assert p.std().item() == pytest.approx(0.02, rel=0.02)
            assert abs(p.mean().item()) < 1e-3


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_logits_are_cosines_with_the_prototypes(layers: int) -> None:
    head, tokens = small(layers), torch.randn(2, 12)
    linears = [part for part in head.mlp if isinstance(part, nn.Linear)]
    assert len(linears) == layers
    for row, logits in zip(tokens, head(tokens), strict=True):
        x = row
        for linear in linears[:-1]:
            x = F.gelu(linear.weight @ x + linear.bias)
        x = linears[-1].weight @ x + linears[-1].bias
        for k in range(20):
            assert_close(logits[k], F.cosine_similarity(x, head.last.weight[k], dim=0), rtol=1e-4, atol=1e-6)


def test_equals_weight_norm_of_torch_with_a_gain_of_one() -> None:
    head, tokens = small(), torch.randn(6, 12)
    linear = nn.Linear(8, 20, bias=False)
    linear.load_state_dict(head.last.state_dict())
    normed = nn.utils.parametrizations.weight_norm(linear)
    with torch.no_grad():
        normed.parametrizations.weight.original0.fill_(1.0)
    theirs = normed(F.normalize(head.mlp(tokens), dim=-1))
    assert_close(head(tokens), theirs)
    grad = torch.randn(6, 20)
    (ours,) = torch.autograd.grad(head(tokens), head.last.weight, grad)
    (expected,) = torch.autograd.grad(theirs, normed.parametrizations.weight.original1, grad)
    assert_close(ours, expected)


def test_logits_do_not_depend_on_the_lengths_of_the_prototypes() -> None:
    head, tokens = small(), torch.randn(5, 12)
    before = head(tokens)
    with torch.no_grad():
        head.last.weight.mul_(torch.linspace(0.1, 9, 20)[:, None])
    assert_close(head(tokens), before)


def test_class_and_patch_tokens_are_treated_alike() -> None:
    head, tokens = small(), torch.randn(3, 1 + 7, 12)
    out = head(tokens)
    assert out.shape == (3, 8, 20)
    assert_close(out[:, 0], head(tokens[:, 0]))
    assert_close(out[:, 1:], head(tokens[:, 1:]))


def test_can_be_copied_saved_and_averaged() -> None:
    student, tokens = small(), torch.randn(4, 12)
    teacher = copy.deepcopy(student)
    assert torch.equal(teacher(tokens), student(tokens))
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
        mixed = {name: 0.9 * p + 0.1 * dict(student.named_parameters())[name] for name, p in teacher.named_parameters()}
        torch._foreach_lerp_([p for _, p in teacher.named_parameters()], list(student.parameters()), 0.1)
    for name, p in teacher.named_parameters():
        assert_close(p.detach(), mixed[name])
    loaded = ProjectionHead(12, 20, hidden=32, bottleneck=8)
    loaded.load_state_dict(teacher.state_dict())
    assert torch.equal(loaded(tokens), teacher(tokens))


def test_last_layer_can_be_frozen() -> None:
    head = small()
    head.last.weight.requires_grad_(False)
    head(torch.randn(4, 12)).square().sum().backward()
    assert head.last.weight.grad is None
    assert all(p.grad is not None for p in head.mlp.parameters())


def test_zero_bottleneck_in_half_precision() -> None:
    head, tokens = small(), torch.randn(4, 12)
    with torch.no_grad():
        head.mlp[-1].weight.zero_()  # type: ignore[operator]
    with torch.autocast("cpu", dtype=torch.float16):
        out = head(tokens)
    assert out.dtype == torch.float16
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("wrong", ["width", "outputs", "hidden", "bottleneck", "layers"])
def test_sizes_below_one(wrong: str) -> None:
    sizes = {"width": 4, "outputs": 4, "hidden": 4, "bottleneck": 4, "layers": 2, wrong: 0}
    with pytest.raises(ValueError, match=rf"{wrong}: expected 1 or more, got 0"):
        ProjectionHead(**sizes)
