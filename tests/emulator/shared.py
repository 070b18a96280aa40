"""Shared memory of a thread block, and what is asynchronous there: cp.async and wgmma."""

import numpy as np

from . import counts
from .arithmetic import I8, U1, U2, U4
from .memory import CELL, SEVERAL_WARPS, History, write_values
from .products import as_float, fragment, matrix_addresses, wgmma


class SharedMemory:
    def __init__(self, block, size):
        self.block, self.size = block, size
        self.bytes = np.full(max(size + -size % 16, 16), 255, U1)
        self.views = {w: self.bytes.view(f"u{w}") for w in (1, 2, 4, 8)}
        cells = len(self.bytes) // CELL
        self.history = History(cells, "shared memory")
        self.written = np.zeros(cells, bool)
        self.unfenced = np.zeros(cells, bool)  # written since the last fence.proxy.async
        self.copied = np.zeros(cells, np.int16)  # cp.async in flight to here
        self.multiplied = np.zeros(cells, bool)  # wgmma in flight reads here
        self.copies, self.groups = [], []  # of cp.async: not committed, committed
        self.products = [[]]  # cells that groups of wgmma read, the last not committed

    def _report(self, kind, site, bad, detail=""):
        self.block.report(kind, site, bad, detail)

    def _find(self, address, size, threads, site, kind):
        a = address[threads].astype(I8)
        good = (a + size <= self.size) & (a % size == 0)
        self._report("out-of-bounds", site, ~good, f"of {self.size} bytes of shared memory")
        a = np.where(good, a, 0)
        if self.block.counted:
            self.block.launch.wavefronts[kind, site] += counts.wavefronts(a, size, threads)
        return a, a[:, None] // CELL + np.arange(size // CELL)

    def _read(self, cells, threads, site):
        self._report("uninitialised", site, ~self.written[cells], "shared memory")
        self._report("async-race", site, self.copied[cells] > 0, "read during cp.async")
        self.history.read(self.block, cells, threads, site)

    def _write(self, cells, threads, site, changes, lost):
        busy = (self.copied[cells] > 0) | self.multiplied[cells]
        self._report("async-race", site, busy, "write during cp.async or wgmma")
        self.history.write(self.block, cells, threads, site, changes, lost)
        self.written[cells] = True
        self.unfenced[cells] = True

    # ---- synchronous accesses
    def load(self, address, width, count, mask, site):
        """``[count, all threads]``."""
        out = np.zeros((count, len(self.block.threads)), f"u{width}")
        threads = self.block.active(mask)
        if len(threads):
            a, cells = self._find(address, width * count, threads, site, "load")
            self._read(cells, threads, site)
            out[:, threads] = self.views[width][a // width + np.arange(count)[:, None]]
        return out

    def store(self, address, width, values, mask, site):
        threads = self.block.active(mask)
        if not len(threads):
            return
        a, cells = self._find(address, width * len(values), threads, site, "store")
        at = a // width + np.arange(len(values))[:, None]
        x = np.stack([v[threads] for v in values])
        self._write(cells, threads, site, *write_values(self.views[width], at, x))

    def _rows(self, address, count, site, kind):
        """Of `count` matrices a warp: thread 8 j + i gives the address of row i of matrix j."""
        threads = self.block.threads[self.block.threads % 32 < 8 * count]
        a, cells = self._find(address, 16, threads, site, kind)
        return threads, cells, a // 2 + np.arange(8)[:, None]

    def ldmatrix(self, address, count, trans, site):
        threads, cells, at = self._rows(address, count, site, "ldmatrix")
        self._read(cells, threads, site)
        rows = self.views[2][at].T.reshape(-1, count, 8, 8)
        rows = np.ascontiguousarray(rows.swapaxes(2, 3) if trans else rows)
        words = rows.view(U4).reshape(-1, count, 32).transpose(1, 0, 2)
        return np.ascontiguousarray(words).reshape(count, -1)

    def stmatrix(self, address, registers, trans, site):
        count = len(registers)
        threads, cells, at = self._rows(address, count, site, "stmatrix")
        words = np.stack(registers).reshape(count, -1, 32).transpose(1, 0, 2)
        rows = np.ascontiguousarray(words).view(U2).reshape(-1, count, 8, 8)
        x = (rows.swapaxes(2, 3) if trans else rows).reshape(-1, 8).T
        self._write(cells, threads, site, *write_values(self.views[2], at, x))

    # ---- copies from global memory
    def copy_async(self, to, address, size, given, mask, site):
        """``given`` bytes and zeros behind them. Taken at once; lands when it is waited for."""
        block, threads = self.block, self.block.active(mask)
        if not len(threads):
            return
        a, cells = self._find(to, size, threads, site, "cp.async")
        given = np.full(len(threads), size) if given is None else given[threads].astype(I8)
        data = np.zeros((size, len(block.threads)), U1)
        for amount in set(given.tolist()) - {0}:
            found, values = block.launch.memory.fetch(
                block, address, 1, amount, threads[given == amount], site, "cp.async"
            )
            data[:amount, found] = values
        busy = (self.copied[cells] > 0) | self.multiplied[cells]
        self._report("async-race", site, busy, "cp.async during another or wgmma")
        # others may still read, or their writes still come, from now on
        self.history.write(block, cells, threads, site)
        self.copied[cells] += 1
        self.copies.append((a, cells, threads, data[:, threads].T))

    def commit(self):
        self.groups.append(self.copies)
        self.copies = []

    def wait(self, left):
        while len(self.groups) > left:
            for a, cells, threads, data in self.groups.pop(0):
                self.copied[cells] -= 1
                self.bytes[a[:, None] + np.arange(data.shape[1])] = data
                self.written[cells] = True
                # for others it lands now
                self.history.writer[cells] = (self.block.time + self.block.who[threads])[:, None]

    # ---- products of warpgroups
    def fence(self):
        self.unfenced.fill(False)

    def _operand(self, descriptor, rows, trans, kind, site):
        """``[warpgroups, rows, k]`` of a matrix in shared memory."""
        found = []
        for d in descriptor.reshape(-1, 128):
            assert (d == d[0]).all(), "a warpgroup's threads differ"
            item = 4 if kind == "tf32" else 2
            a = matrix_addresses(int(d[0]), rows, trans, item)
            self._report("out-of-bounds", site, a + item > self.size, "shared memory, wgmma")
            a = np.minimum(a, self.size - item)
            cells = a // CELL
            self._report("uninitialised", site, ~self.written[cells], "shared memory, wgmma")
            self._report("async-race", site, self.copied[cells] > 0, "wgmma during cp.async")
            race = self.history.writer[cells] >= self.block.since_barrier
            self._report("warp-race", site, race, "shared memory, wgmma after write")
            self._report("proxy", site, self.unfenced[cells], "no fence.proxy.async before wgmma")
            self.history.reader[cells] = self.block.time + SEVERAL_WARPS
            self.multiplied[cells] = True
            self.products[-1].append(cells)
            found.append(as_float(kind, self.views[item][a // item]))
        return np.stack(found)

    def wgmma(self, kind, width, a, b, accumulate, old, trans_a, trans_b, site):
        """Registers of D; a: registers of fragments or a descriptor, b: a descriptor."""
        if isinstance(a, list):
            a = fragment(kind, True, *a)
            a = a.reshape(-1, 64, a.shape[2])
        else:
            a = self._operand(a, 64, trans_a, kind, site)
        b = self._operand(b, width, trans_b, kind, site).swapaxes(1, 2)
        assert accumulate.all() or not accumulate.any()
        return wgmma(a, b, np.stack(old) if accumulate.all() else None)

    def commit_products(self):
        self.products.append([])

    def wait_products(self, left):
        del self.products[: max(len(self.products) - 1 - left, 0)]
        self.multiplied.fill(False)
        for group in self.products:
            for cells in group:
                self.multiplied[cells] = True
