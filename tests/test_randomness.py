import torch

from hardpatch.randomness import patch_noise


def splitmix64(x: int) -> int:
    """Compute the published finalizer with Python integers."""
    mask = 2**64 - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
    return x ^ (x >> 31)


def slow_noise(seed: int, step: int, sample: int, patches: int) -> list[float]:
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15
    key = seed
    for part in (step, sample):
        key = splitmix64((key + golden) & mask) ^ part
    key = splitmix64((key + golden) & mask)
    return [(splitmix64((key + n * golden) & mask) >> 40) / 2**24 for n in range(1, patches + 1)]


def test_equals_a_slow_version_in_unbounded_integers() -> None:
    noise = patch_noise(7, 123, torch.tensor([0, 5, 1_281_166]), 9)
    assert noise.tolist() == [slow_noise(7, 123, sample, 9) for sample in (0, 5, 1_281_166)]


def test_row_depends_only_on_its_sample() -> None:
    samples = torch.randint(0, 10**6, (64,))
    together = patch_noise(3, 11, samples, 49)
    for part in (samples[:1], samples[40:], samples.flip(0)):
        order = [samples.tolist().index(s) for s in part.tolist()]
        assert torch.equal(patch_noise(3, 11, part, 49), together[order])


def test_numbers_depend_on_seed_step_sample_and_patch() -> None:
    samples = torch.arange(100)
    base = patch_noise(0, 0, samples, 64)
    for other in (patch_noise(1, 0, samples, 64), patch_noise(0, 1, samples, 64), patch_noise(0, 0, samples + 1, 64)):
        assert (base == other).float().mean() < 1e-3
    # not even two patches of different samples have the same number, but for the few chances that 24 bits leave
    assert base.unique().numel() > 0.99 * base.numel()


def test_numbers_are_uniform_and_uncorrelated() -> None:
    noise = patch_noise(0, 5, torch.arange(4000), 64).double()
    assert noise.min() >= 0.0
    assert noise.max() < 1.0
    counts = torch.histc(noise, 64, 0.0, 1.0)
    expected = noise.numel() / 64
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 120  # 63 degrees of freedom: the 99.999 % quantile
    correlation = torch.corrcoef(noise.T) - torch.eye(64)
    assert correlation.abs().max() < 6 / 4000**0.5  # between patches, over samples
    neighbors = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1]
    assert neighbors.abs() < 5 / noise.numel() ** 0.5
