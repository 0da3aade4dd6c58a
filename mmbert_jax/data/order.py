"""Which row of which entry of the mixture is global row i: a pure function of (weights, rows, seed, i).

Rows are packed beforehand, so shares of rows are shares of tokens. Time is cut into blocks of N rows. At the end
of block b every entry has given its share of (b + 1) * N rows, to within one row, computed from b alone: there is
nothing to carry along, nothing to save, and any position is reached at the cost of one block. Inside a block the order
is a seeded shuffle. An entry's k-th row is row `shuffle(pass, k mod rows)` of its pass k // rows.
"""

import numpy as np

# Rows in which every entry gets its share: about one published batch (4608 rows), so each step has nearly the same
# mixture, and a phase of a few thousand rows keeps to it too. With many entries blocks are longer, ENTRY_ROWS for each,
# since what comes less than once a block only gets its share over several. A block of either length takes a few ms.
BLOCK = 4096
ENTRY_ROWS = 8

# An entry that gains at least this many rows a block may be rounded either way in each, by up to two rows, and still
# never takes one back.
FREELY_ROUNDED = 4

_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment


class RowOrder:
    """The order of rows; `order[i]` is (entry, pass, row), `order.slice(start, stop)` the same for many.

    Holds one computed block as a cache and no other state: it can be shared and pickled at any moment.

    Args:
      weights: [n] shares of the entries, of any scale.
      rows: [n] rows that each entry has.
      seed: whole number, 0 or more.
      block: rows of a block, at least `ENTRY_ROWS` for each entry; None chooses.
    """

    def __init__(self, weights: np.ndarray, rows: np.ndarray, seed: int, block: int | None = None):
        self.weights = np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
        self.rows = np.asarray(rows, np.int64)
        self.seed = seed
        self.block = block = block or max(BLOCK, len(self.weights) * ENTRY_ROWS)
        self._rare = self.weights * block < FREELY_ROUNDED
        if block < len(self.weights) * ENTRY_ROWS:
            raise ValueError(f"{len(self.weights)} entries are too many for blocks of {block} rows")
        # Rare entries come once in several blocks; their phases say when. Steps of the golden ratio spread the phases
        # of entries with similar weights evenly, so that in each block about as many come as should.
        rank = np.argsort(np.argsort(self.weights, kind="stable"))
        self._phase = (rank * 0.6180339887498949 + np.random.default_rng([seed, 0]).random()) % 1.0
        self._cached = (-1, None)

    def given(self, blocks: int) -> np.ndarray:
        """Rows that each entry has given after `blocks` blocks: int64 [n], together exactly blocks * block.

        Each is within one row of its share. Rare entries are rounded down after adding their phase, which never
        decreases; the others then share out what is missing, to the largest remainders first.
        """
        total = blocks * self.block
        exact = self.weights * total
        given = np.floor(np.where(self._rare, exact + self._phase, exact)).astype(np.int64)
        if blocks == 0:
            return np.zeros_like(given)
        missing = total - int(given.sum())
        frequent = np.flatnonzero(~self._rare)
        # One row more for the largest remainders is enough, unless a handful of frequent entries stands beside a
        # thousand rare ones: then some are a second row off, and the largest takes what would go beyond that.
        spread = min(max(missing, -len(frequent)), 2 * len(frequent))
        each, more = divmod(spread, len(frequent))
        by_remainder = frequent[np.argsort(given[frequent] - exact[frequent], kind="stable")]
        given[frequent] += each
        given[by_remainder[:more]] += 1
        given[np.argmax(self.weights)] += missing - spread
        return given

    def slice(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(entry, pass, row) of the global rows [start, stop): three int64 arrays."""
        parts = []
        for block in range(
            start // self.block, max(-(-stop // self.block), start // self.block + 1)
        ):
            first = block * self.block
            parts.append(self._of_block(block)[:, max(start - first, 0) : stop - first])
        entry, pass_number, row = np.concatenate(parts, axis=1)
        return entry, pass_number, row

    def __getitem__(self, i: int) -> tuple[int, int, int]:
        entry, pass_number, row = self._of_block(i // self.block)[:, i % self.block].tolist()
        return entry, pass_number, row

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cached": (-1, None)}

    def _of_block(self, block: int) -> np.ndarray:
        """int64 [3, block]: entry, pass, row of each row of a block."""
        cached, rows_of_block = self._cached  # one read: other threads may replace it meanwhile
        if cached == block:
            return rows_of_block
        before = self.given(block)
        count = self.given(block + 1) - before
        entry = np.repeat(np.arange(len(count)), count)
        first = np.repeat(np.cumsum(count) - count, count)
        k = np.arange(len(entry)) - first + before[entry]
        pass_number, position = k // self.rows[entry], k % self.rows[entry]
        row = shuffled(position, self.rows[entry], _keys(self.seed, entry, pass_number))
        order = np.random.default_rng([self.seed, 1, block]).permutation(len(entry))
        rows_of_block = np.stack([entry, pass_number, row])[:, order]
        self._cached = (block, rows_of_block)
        return rows_of_block


def shuffled(position: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where a shuffle puts each position: for each (size, key) a permutation of [0, size), without a table.

    A Feistel network over pairs (left, right) of numbers below ceil(sqrt(size)), which permutes a range a little
    longer than `size`; what lands beyond `size` goes through it again until it lands inside (cycle walking).

    Args:
      position: int64 [n], each in [0, size).
      size: int64 [n], at least 1.
      key: uint64 [n].

    Returns:
      int64 [n], each in [0, size).
    """
    side = np.ceil(np.sqrt(size)).astype(np.int64)
    side += side * side < size  # the square root of a number above 2^52 may be rounded down
    result = np.array(position, np.int64)
    todo = np.arange(len(result))
    while len(todo):
        result[todo] = _feistel(result[todo], side[todo], key[todo])
        todo = todo[result[todo] >= size[todo]]
    return result


def _feistel(x: np.ndarray, side: np.ndarray, key: np.ndarray, rounds: int = 6) -> np.ndarray:
    left, right = x // side, x % side
    modulus = side.astype(np.uint64)
    for number in range(1, rounds + 1):
        noise = _mix(_mix(key + np.uint64(number * _GOLDEN % 2**64)) + right.astype(np.uint64))
        left, right = right, (left + (noise % modulus).astype(np.int64)) % side
    return left * side + right


def _keys(seed: int, entry: np.ndarray, pass_number: np.ndarray) -> np.ndarray:
    """uint64 [n]: a key for each (seed, entry, pass)."""
    key = np.full(entry.shape, seed % 2**64, np.uint64)
    for part in (entry, pass_number):
        key = _mix(key + np.uint64(_GOLDEN)) + part.astype(np.uint64)
    return _mix(key)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: a bijection of uint64 in which every bit depends on every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
