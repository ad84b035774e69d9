import pytest
import torch
from torch.testing import assert_close

from hardpatch.methods.teacher import Teacher, linear_momentum
from tests.small import mae_of, small_hpm


def test_update_is_the_moving_average() -> None:
    student = small_hpm()
    teacher = Teacher(student)
    expected = {name: p.detach().clone() for name, p in student.named_parameters()}
    for step in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        teacher.update(student, momentum=0.9 + 0.02 * step)
        for name, p in student.named_parameters():
            expected[name] = (0.9 + 0.02 * step) * expected[name] + (0.1 - 0.02 * step) * p.detach()
    for name, p in teacher.network.named_parameters():
        assert_close(p, expected[name])


def test_has_no_reconstructor_and_shares_no_memory() -> None:
    student = small_hpm()
    teacher = Teacher(student)
    assert teacher.network.host.reconstructor is None
    assert mae_of(student).reconstructor is not None
    names = {name for name, _ in teacher.network.named_parameters()}
    assert names == {name for name, _ in student.named_parameters() if not name.startswith("host.reconstructor.")}
    pointers = {p.data_ptr() for p in student.parameters()}
    assert not any(p.data_ptr() in pointers for p in teacher.network.parameters())


def test_is_not_trained() -> None:
    teacher = Teacher(small_hpm())
    difficulty = teacher.predict_loss(torch.randn(2, 3, 16, 24))
    assert difficulty.shape == (2, 24)
    assert not difficulty.requires_grad
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not teacher.network.training


def test_momentum_rises_and_stays() -> None:
    assert linear_momentum(0.0, 0.999, 0.9999, 0.5) == 0.999
    assert linear_momentum(0.25, 0.999, 0.9999, 0.5) == pytest.approx(0.99945)
    assert linear_momentum(0.5, 0.999, 0.9999, 0.5) == 0.9999
    assert linear_momentum(1.0, 0.999, 0.9999, 0.5) == 0.9999
    assert linear_momentum(0.0, 0.9, 0.99, 0.0) == 0.99
