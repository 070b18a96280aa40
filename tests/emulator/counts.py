"""What the accesses of warps cost: sectors of global memory, wavefronts of shared memory.

Each function returns ``[needed, fewest possible, warps]``.
"""

import numpy as np


def sectors(addresses, size, warps):
    """Sectors of 32 bytes that accesses of ``size`` bytes touch, warp by warp."""
    touched = np.concatenate([addresses, addresses + size - 1]).reshape(2, -1) // 32
    unique = np.unique(warps * 2**48 + addresses)
    bytes_of = np.bincount((unique >> 48).astype(int)) * size
    needed = len(np.unique(warps * 2**48 + touched))
    return np.array([needed, (-(-bytes_of // 32)).sum(), (bytes_of > 0).sum()])


def wavefronts(addresses, size, threads):
    """Passes over the 32 banks; threads of a warp go in groups whose accesses make 128 bytes."""
    words = addresses[:, None] // 4 + np.arange(max(size // 4, 1))
    group = (threads // min(32, 128 // max(size, 4)))[:, None]
    key = np.unique(group * 2**40 + words)
    banks = np.bincount((key >> 40) * 32 + (key & 31))
    needed = np.pad(banks, (0, -len(banks) % 32)).reshape(-1, 32).max(1)
    unique = np.unique((threads // 32)[:, None] * 2**40 + words) >> 40
    fewest = -(-np.bincount(unique) // 32)
    return np.array([needed.sum(), fewest.sum(), (fewest > 0).sum()])
