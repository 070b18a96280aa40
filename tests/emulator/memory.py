"""Global memory of a launch, and how races are found in any memory."""

import ctypes

import numpy as np

from . import counts
from .arithmetic import F4, I8, U4

CELL = 2  # bytes that are watched as one: no kernel's elements are smaller
# an entry of `History`: time * TICK + warp * 64 + lane
TICK, WARP, LANE = 4096, 63 * 64, 63
SEVERAL_WARPS, SEVERAL_LANES = WARP, 32


class History:
    """Who wrote and who read each cell last: finds accesses that no barrier puts in order.

    Two warps need a bar.sync in between, two lanes of a warp that or a bar.warp.sync.
    """

    def __init__(self, cells, name):
        self.writer = np.full(cells, -1, I8)
        self.reader = np.full(cells, -1, I8)
        self.name = name

    def _report(self, entries, mine, block, site, what, only=True):
        differs = entries ^ mine
        warp = differs & WARP != 0
        race = (entries >= block.since_barrier) & warp & only
        block.report("warp-race", site, race, f"{self.name}, {what}")
        lane = (entries >= block.since_warp_barrier) & ~warp & (differs & LANE != 0) & only
        block.report("lane-race", site, lane, f"{self.name}, {what}")

    def read(self, block, cells, threads, site):
        mine = block.time + block.who[threads][:, None]
        self._report(self.writer[cells], mine, block, site, "read after write")
        before = self.reader[cells]
        several = (before >= block.since_barrier) & ((before ^ mine) & WARP != 0)
        lanes = (before >= block.since_warp_barrier) & ((before ^ mine) & LANE != 0)
        new = np.where(lanes, mine & ~LANE | SEVERAL_LANES, mine)
        new = np.where(several, block.time + SEVERAL_WARPS, new)
        self.reader[cells] = new
        lost = self.reader[cells] ^ new  # where threads read the same cell at once
        if lost.any():
            lanes, several = (lost & LANE != 0), (lost & WARP != 0)
            self.reader[cells[lanes]] = (new & ~LANE | SEVERAL_LANES)[lanes]
            self.reader[cells[several]] = block.time + SEVERAL_WARPS

    def write(self, block, cells, threads, site, changes=True, lost=False):
        """``changes``: accesses that change what they write to; ``lost``: whose values another
        thread's replaced at once. What writes the same value is no race of writes."""
        mine = block.time + block.who[threads][:, None]
        self._report(self.writer[cells], mine, block, site, "write after write", changes)
        self._report(self.reader[cells], mine, block, site, "write after read")
        self.writer[cells] = mine
        winner = np.reshape(lost, (-1, 1)) & (self.writer[cells] != mine)
        if winner.any():
            other = winner & ((self.writer[cells] ^ mine) & WARP != 0)
            block.report("warp-race", site, other, f"{self.name}, two values at once")
            if self.name == "global memory":
                block.report("lane-race", site, winner, f"{self.name}, two values at once")


def write_values(view, at, values):
    """Stores; which threads' values changed something, and which another thread's replaced."""
    before = view[at]
    view[at] = values
    lost = view[at] != values
    if lost.any() and values.dtype == U4:  # a GPU's results that are NaN have the same bits
        lost &= ~(np.isnan(view[at].view(F4)) & np.isnan(values.view(F4)))
    return (before != values).any(0)[:, None], lost.any(0)


class GlobalMemory:
    """The memory of the tensors of a launch.

    Args:
        tensors: what the kernel may access: their elements, not all of their storage.
        written: of some storages, by their address, which cells have been written.
    """

    def __init__(self, tensors, written):
        storages = {}
        for x in tensors:
            if x.numel():
                storages.setdefault(x.untyped_storage().data_ptr(), []).append(x)
        starts = sorted(storages) or [0]
        sizes = [storages[s][0].untyped_storage().nbytes() if s else 0 for s in starts]
        cells = [-(-size // CELL) for size in sizes]
        self.starts, self.offsets = np.array(starts), np.cumsum([0, *cells])[:-1]
        self.ends = self.starts + sizes
        self.allowed, self.written = np.zeros(sum(cells), bool), np.ones(sum(cells), bool)
        self._shadows = []
        for start, offset, count in zip(starts, self.offsets, cells, strict=True):
            place = slice(offset, offset + count)
            for x in storages.get(start, []):
                item = x.element_size() // CELL
                view = np.lib.stride_tricks.as_strided(
                    self.allowed[offset + x.storage_offset() * item :],
                    (*x.shape, item), (*(s * item for s in x.stride()), 1),
                )  # fmt: skip
                view[...] = True
            if start in written:
                self.written[place] = written[start]
                self._shadows.append((written[start], place))
        self.history = History(sum(cells), "global memory")
        self.read_by_others = np.zeros(sum(cells), bool)  # by an earlier block than the last reader
        base = starts[0] & ~15
        length = (int(self.ends[-1]) - base + 31) & ~15
        raw = np.frombuffer((ctypes.c_uint8 * length).from_address(base), np.uint8)
        self.base, self.views = base, {w: raw.view(f"u{w}") for w in (1, 2, 4, 8)}

    def close(self):
        for shadow, place in self._shadows:
            shadow[:] = self.written[place]

    def _find(self, block, address, size, threads, site, kind):
        """Threads whose access is legal, their addresses and cells."""
        a = address[threads].view(I8)
        block.report("misaligned", site, a % size != 0)
        region = np.maximum(np.searchsorted(self.starts, a, "right") - 1, 0)
        start = self.starts[region]
        good = (a >= start) & (a + size <= self.ends[region]) & (a % size == 0)
        cells = np.where(good, (a - start) // CELL + self.offsets[region], 0)
        cells = cells[:, None] + np.arange(size // CELL)
        good &= self.allowed[np.where(good[:, None], cells, 0)].all(1)
        if not good.all():
            first = np.flatnonzero(~good)[0]
            detail = f"thread {threads[first]}, address {a[first]:#x}"
            block.report("out-of-bounds", site, ~good, detail)
        if block.counted:
            block.launch.sectors[kind, site] += counts.sectors(a, size, threads // 32)
        return threads[good], a[good], cells[good]

    def _earlier(self, entries, block):
        return (entries >= 0) & (entries < block.started)

    def fetch(self, block, address, width, count, threads, site, kind="load"):
        """The threads that may read, and their values ``[count, threads]``."""
        threads, a, cells = self._find(block, address, width * count, threads, site, kind)
        block.report("uninitialised", site, ~self.written[cells], "global memory")
        other = self._earlier(self.history.writer[cells], block)
        block.report("program-race", site, other, "read of another's write")
        self.read_by_others[cells] |= self._earlier(self.history.reader[cells], block)
        self.history.read(block, cells, threads, site)
        at = ((a - self.base) // width)[None, :] + np.arange(count)[:, None]
        return threads, self.views[width][at]

    def load(self, block, address, width, count, mask, site):
        """``[count, all threads]``."""
        out = np.zeros((count, len(block.threads)), f"u{width}")
        active = block.active(mask)
        if len(active):
            threads, values = self.fetch(block, address, width, count, active, site)
            out[:, threads] = values
        return out

    def store(self, block, address, width, values, mask, site):
        threads, count = block.active(mask), len(values)
        if not len(threads):
            return
        threads, a, cells = self._find(block, address, width * count, threads, site, "store")
        at = ((a - self.base) // width)[None, :] + np.arange(count)[:, None]
        changes, lost = write_values(self.views[width], at, np.stack([v[threads] for v in values]))
        other = self._earlier(self.history.writer[cells], block) & changes
        block.report("program-race", site, other, "two writes")
        other = self._earlier(self.history.reader[cells], block) | self.read_by_others[cells]
        block.report("program-race", site, other, "write of what another read")
        self.history.write(block, cells, threads, site, changes, lost)
        self.written[cells] = True
