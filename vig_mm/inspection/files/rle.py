"""Validity of COCO's run-length encoded masks.

pycocotools gives memory that it never wrote as a mask where the runs do not reach the end.
"""

import numpy as np

_LONGEST = 12  # characters of a run that fits 60 bits


def is_whole(rle: dict) -> bool:
    """Whether the runs of an RLE with `size` and `counts` fill it."""
    height, width = rle["size"]
    counts = rle["counts"]
    if isinstance(counts, str):
        # as Python's integers, which hold any run
        counts = _decompress(counts).tolist()
    if not counts or not all(isinstance(one, int) for one in counts):
        return False
    return min(counts) >= 0 and sum(counts) == height * width


def _decompress(counts: str) -> np.ndarray:
    """The runs in pycocotools' compressed form, int64; none if it is not in that form.

    A run has 5 bits in each character, the lowest first, counted from "0"; 32 means "goes on", and
    16 in the last one is the sign. From the fourth run on it is the difference to the run two
    before.
    """
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    is_last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not is_last[-1]:
        return np.empty(0, np.int64)
    ends = np.flatnonzero(is_last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        return np.empty(0, np.int64)
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
