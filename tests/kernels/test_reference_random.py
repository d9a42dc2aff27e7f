"""The random numbers: published vectors, fixed values, distribution."""

import math

import numpy as np
import torch

from kernels.reference_random import MAX_NOISE, MIN_NOISE, gumbel_noise, hash_tokens, philox4x32, row_keys


def test_philox_gives_the_published_numbers() -> None:
    """Known answers of the Random123 distribution."""
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    cases = [
        ([0] * 6, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 6, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (pi, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ]
    words = np.array([case for case, _ in cases], np.uint32)
    assert philox4x32(words[:, :4], words[:, 4:]).tolist() == [wanted for _, wanted in cases]


def keys(seed: int, position: int, sample_index: int = 0) -> torch.Tensor:
    low, high = np.array([seed & 0xFFFFFFFF], np.uint32), np.array([seed >> 32], np.uint32)
    return row_keys(low, high, np.array([sample_index], np.int32), np.array([position]))


def test_every_part_of_the_key_counts() -> None:
    seen = {tuple(keys(*case)[0].tolist()) for case in [(1, 5), (2, 5), (1 << 32, 5), (1, 6), (1, 5, 1)]}
    assert len(seen) == 5


def unsigned_hash(token: int, key: tuple[int, int]) -> int:
    """triple32 with a second key word, on Python's integers."""
    mask = 0xFFFFFFFF
    x = (token + key[0]) & mask
    x = ((x ^ (x >> 17)) * 0xED5AD4BB) & mask
    x = (((x ^ (x >> 11)) + key[1]) * 0xAC4C1B51) & mask
    x = ((x ^ (x >> 15)) * 0x31848BAB) & mask
    return x ^ (x >> 14)


def test_the_hash_is_that_of_unsigned_numbers() -> None:
    rows = row_keys(
        np.array([3, 0xFFFFFFFF], np.uint32), np.array([0, 9], np.uint32), np.zeros(2, np.int32), np.array([0, 7])
    )
    tokens = torch.tensor([0, 1, 77, 128255], dtype=torch.int32)
    bits = hash_tokens(rows[:, None], tokens[None])
    for i in range(2):
        key = tuple(int(word) & 0xFFFFFFFF for word in rows[i])
        assert [int(b) & 0xFFFFFFFF for b in bits[i]] == [unsigned_hash(int(t), key) for t in tokens]  # type: ignore[arg-type]


def test_noise_stays_within_its_bounds() -> None:
    extremes = gumbel_noise(torch.tensor([0, 1, -1, -(2**31), 2**31 - 1], dtype=torch.int32))
    assert torch.isfinite(extremes).all()
    assert float(extremes.max()) < MAX_NOISE < float(extremes.max()) + 0.1
    assert float(extremes.min()) > MIN_NOISE > float(extremes.min()) - 0.1


def test_noise_is_gumbel_distributed() -> None:
    """Kolmogorov's distance to exp(-exp(-x)), over tokens of one row and over rows of one token."""
    n = 100_000
    across_tokens = hash_tokens(keys(42, 17), torch.arange(n, dtype=torch.int32))
    positions = np.arange(n)
    zeros = np.zeros(n, np.uint32)
    across_rows = hash_tokens(row_keys(zeros, zeros, zeros, positions), torch.tensor(5, dtype=torch.int32))
    for bits in (across_tokens, across_rows):
        noise = gumbel_noise(bits).double().sort().values
        distance = (torch.exp(-torch.exp(-noise)) - torch.arange(n) / n).abs().max()
        assert float(distance) < 1.95 / math.sqrt(n)  # passed by chance in all but 1 of 1000 draws
