import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hardpatch.data.order import EvaluationOrder, TrainingOrder


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 40),
    share=st.integers(1, 30),
    world_size=st.integers(1, 4),
    start=st.integers(0, 50),
    seed=st.integers(0, 2**40),
)
def test_stream_is_the_permutations_of_the_epochs(n: int, share: int, world_size: int, start: int, seed: int) -> None:
    """With any batch size, rank and start, a position of the stream is an entry of its epoch's permutation."""
    batch_size = share * world_size
    rows = [
        np.concatenate(list(itertools.islice(TrainingOrder(n, batch_size, seed, start, rank, world_size), 3)))
        for rank in range(world_size)
    ]
    stream = np.stack([row.reshape(3, share, 2) for row in rows], axis=1).reshape(-1, 2)
    positions = np.arange(start * batch_size, (start + 3) * batch_size)
    assert np.array_equal(stream[:, 0], positions // n)
    for epoch in np.unique(stream[:, 0]):
        entries, indices = positions[stream[:, 0] == epoch] % n, stream[stream[:, 0] == epoch, 1]
        permutation = np.concatenate(list(itertools.islice(TrainingOrder(n, 1, seed, int(epoch) * n, 0, 1), n)))[:, 1]
        assert sorted(permutation) == list(range(n))
        assert np.array_equal(indices, permutation[entries])


def test_starting_far_into_a_run_is_instant() -> None:
    order = iter(TrainingOrder(1_000_000, 4096, 0, 10**9, 0, 1))
    assert next(order).shape == (4096, 2)


def test_evaluation_order_is_every_image_once() -> None:
    assert [indices.tolist() for indices in EvaluationOrder(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
