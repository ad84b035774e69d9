"""Nearest neighbors of images by their vectors, and groups of near-duplicates."""

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NEIGHBORS = 10
"""Neighbors of an image that are candidates for its duplicates."""
EXACT = 50_000
"""Images up to which every pair is compared."""
TRAINED = 64
"""Vectors for each cell that the cells of a large index are trained on."""
LEAST_SIMILARITY, LEAST_CORRELATION = 0.65, 0.94
"""Similarity of vectors, and correlation of thumbnails, from which on images are duplicates; see docs/rank.md."""

ReadVectors = Callable[[], Iterable[NDArray[np.float32]]]
"""Returns the unit vectors of all images, part by part."""


class Neighbors(NamedTuple):
    """Nearest neighbors of all images, the nearest first; fewer than :data:`NEIGHBORS` in a small set."""

    indices: NDArray[np.int64]
    """rows of the neighbors, ``[n, k]``; -1 for none"""
    similarity: NDArray[np.float32]
    """product of the unit vectors, ``[n, k]``"""


class NoNeighbors(NamedTuple):
    """Reason why there are no neighbors."""

    reason: str


def find_neighbors(read: ReadVectors, count: int) -> tuple[Neighbors | NoNeighbors, str]:
    """Return the neighbors of all images, and a line that says how they were searched.

    Args:
        read: see :data:`ReadVectors`.
        count: number of images.
    """
    k = min(NEIGHBORS, count - 1)
    if k < 1:
        return NoNeighbors("one image has no neighbors"), "no neighbors: there is one image"
    has_faiss = find_spec("faiss") is not None
    if has_faiss:
        exact = count <= EXACT
        index, how = _index(read, count, exact=exact)
        return _searched(index, read, k), f"neighbors: {how}"
    if count > EXACT:
        line = (
            f"no neighbors and duplicates: {count:,} images are more than the {EXACT:,} whose pairs are all compared "
            "without faiss; pip install 'hardpatch[rank]'"
        )
        return NoNeighbors(line), line
    from sklearn.neighbors import NearestNeighbors

    vectors = np.concatenate(list(read()))
    index = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute").fit(vectors)
    parts = [_without_self(*_as_similarity(index.kneighbors(part)), start) for start, part in _numbered(read)]
    return _joined(parts), "neighbors: every pair compared, by scikit-learn"


def _as_similarity(found: tuple[NDArray[Any], NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    return (1 - found[0]).astype(np.float32), found[1]


def _index(read: ReadVectors, count: int, *, exact: bool) -> tuple[Any, str]:
    """Return a faiss index of all vectors. A large one holds a byte for each number, in cells around k-means."""
    import faiss

    width = next(iter(read())).shape[1]
    if exact:
        index: Any = faiss.IndexFlatIP(width)
        how = "every pair compared, by faiss"
    else:
        cells = round(4 * count**0.5)
        quantizer = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, width, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.train(_sample(read, count, cells * TRAINED))
        index.nprobe = max(8, cells // 64)
        how = f"approximate, by faiss: the nearest {index.nprobe} of {cells} cells searched, a byte a number"
    for part in read():
        index.add(part)
    return index, how


def _sample(read: ReadVectors, count: int, wanted: int) -> NDArray[np.float32]:
    """Return vectors that are evenly spread over the set."""
    step = max(1, count // wanted)
    return np.concatenate([part[(-start) % step :: step] for start, part in _numbered(read)])


def _numbered(read: ReadVectors) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the parts with the row of their first vector."""
    start = 0
    for part in read():
        yield start, part
        start += len(part)


def _searched(index: Any, read: ReadVectors, k: int) -> Neighbors:
    parts = []
    for start, part in _numbered(read):
        similarity, indices = index.search(part, k + 1)
        parts.append(_without_self(similarity, indices, start))
    return _joined(parts)


def _without_self(similarity: NDArray[Any], indices: NDArray[Any], start: int) -> Neighbors:
    """Leave out the image itself, or the last neighbor where equal images hide it."""
    own = indices == np.arange(start, start + len(indices))[:, None]
    own[~own.any(1), -1] = True
    shape = (len(indices), indices.shape[1] - 1)
    return Neighbors(indices[~own].reshape(shape).astype(np.int64), similarity[~own].reshape(shape).astype(np.float32))


def _joined(parts: list[Neighbors]) -> Neighbors:
    return Neighbors(np.concatenate([p.indices for p in parts]), np.concatenate([p.similarity for p in parts]))


class Pairs(NamedTuple):
    """Pairs of near-duplicates, the most similar first."""

    rows: NDArray[np.int64]
    """``[P, 2]``, the lower row first"""
    similarity: NDArray[np.float32]
    """``[P]``"""


def duplicate_pairs(neighbors: Neighbors, thumbnails: NDArray[np.uint8]) -> Pairs:
    """Return the pairs of neighbors whose vectors and whose thumbnails ``[n, T]`` are alike."""
    row, place = np.nonzero((neighbors.similarity >= LEAST_SIMILARITY) & (neighbors.indices >= 0))
    found = neighbors.indices[row, place]
    pairs, first = np.unique(np.sort(np.stack([row, found], axis=1), axis=1), axis=0, return_index=True)
    similarity = neighbors.similarity[row, place][first]
    alike = _correlations(thumbnails, pairs) >= LEAST_CORRELATION
    pairs, similarity = pairs[alike], similarity[alike]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -similarity))
    return Pairs(pairs[order], similarity[order])


def _correlations(thumbnails: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Correlation of the thumbnails of each pair; 1 for two blank ones."""
    result = np.empty(len(pairs))
    for begin in range(0, len(pairs), 10_000):
        one, other = (thumbnails[pairs[begin : begin + 10_000, side]].astype(np.float64) for side in (0, 1))
        one, other = (values - values.mean(1, keepdims=True) for values in (one, other))
        lengths = np.sqrt(((one**2).sum(1) + 1) * ((other**2).sum(1) + 1))
        result[begin : begin + 10_000] = ((one * other).sum(1) + 1) / lengths
    return result


def duplicate_groups(pairs: Pairs, count: int) -> NDArray[np.int64]:
    """Return the number of each image's group of duplicates, from 1 by their first images; 0 without any."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs.rows), dtype=np.int8)
    graph = coo_array((ones, (pairs.rows[:, 0], pairs.rows[:, 1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    several = np.bincount(labels, minlength=labels.max() + 1)[labels] > 1
    groups = np.zeros(count, dtype=np.int64)
    numbers: dict[int, int] = {}
    for row in np.flatnonzero(several).tolist():
        groups[row] = numbers.setdefault(int(labels[row]), len(numbers) + 1)
    return groups
