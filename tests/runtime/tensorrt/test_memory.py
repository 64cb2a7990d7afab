"""Blocks that are reused, pinned pieces that are not written too early, and views of rows."""

from __future__ import annotations

import gc
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_cuda import FakeDriver
from lvlm_runtime.tensorrt.cuda import CudaDriver, OutOfMemoryError
from lvlm_runtime.tensorrt.memory import Arena, DeviceArray, Scratch, Staging, new_array, rounded


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def cuda(driver: FakeDriver) -> CudaDriver:
    return CudaDriver(driver)


@given(st.integers(0, 1 << 34))
def test_rounding_loses_at_most_an_eighth(size: int) -> None:
    assert rounded(size) >= size
    assert rounded(size) <= max(512, size + size / 8 + 512)
    assert rounded(rounded(size)) == rounded(size)
    assert rounded(size) % 256 == 0


class Scattered:
    """Memory at addresses in no order, as a driver may give it."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def allocate(self, size_bytes: int) -> int:
        return self._random.randrange(1 << 40) * 256

    def free(self, address: int) -> None:
        pass


Plan = list[tuple[int, bool]]
PLANS = st.lists(st.tuples(st.integers(1, 1 << 13), st.booleans()), min_size=1, max_size=12)


def addresses(arena: Arena, plan: Plan) -> list[int]:
    """Take blocks of some sizes, give some back at once and the others at the end."""
    kept, seen = [], []
    for size, keep in plan:
        block = arena.take(size)
        seen.append(block.address)
        if keep:
            kept.append(block)
        del block
    return seen


@settings(max_examples=100, deadline=None)
@given(PLANS, PLANS, st.integers(0, 1000))
def test_the_same_requests_get_the_same_addresses(prefill: Plan, step: Plan, seed: int) -> None:
    """Whatever came before, and wherever memory lies: no step after the first differs from it."""
    arena = Arena(Scattered(seed))
    addresses(arena, prefill)
    first, taken = addresses(arena, step), arena.allocations
    assert addresses(arena, step) == first
    assert addresses(arena, step) == first
    assert arena.allocations == taken


def test_a_block_in_use_is_nobody_elses(cuda: CudaDriver) -> None:
    arena = Arena(cuda)
    blocks = [arena.take(4000) for _ in range(4)]
    assert len({block.address for block in blocks}) == 4
    address = blocks.pop().address
    assert arena.take(2500).address == address
    assert arena.take(100).address != address, "a block of twice the size is kept for others"


def test_what_is_free_is_returned_before_memory_runs_out() -> None:
    driver = FakeDriver(memory_bytes=1 << 20)
    arena = Arena(CudaDriver(driver))
    del driver.calls[:]
    held = [arena.take(200_000) for _ in range(4)]
    held.clear()
    gc.collect()
    big = arena.take(900_000)
    assert driver.calls.count("cuMemFree") == 4
    assert arena.held_bytes == big.size_bytes
    with pytest.raises(OutOfMemoryError, match="cuMemAlloc: out of memory"):
        arena.take(900_000)


def test_arrays_pass_through_pinned_memory(cuda: CudaDriver, driver: FakeDriver) -> None:
    """More than fits at once: a piece waits until the one before it was copied."""
    arena, staging = Arena(cuda), Staging(cuda, 1024)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, size)).astype(np.float32) for size in (10, 20, 30, 40, 500, 0)]
    sent = []
    for array in arrays:
        target = new_array(arena, array.shape, array.dtype)
        mine = array.copy()
        staging.send(mine, target)
        mine[:] = -1
        sent.append(target)
    for array, target in zip(arrays, sent, strict=True):
        np.testing.assert_array_equal(staging.receive(target), array)
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    brain = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
    target = new_array(arena, brain.shape, brain.dtype)
    staging.send(brain, target)
    np.testing.assert_array_equal(staging.receive(target), brain)
    strided = np.arange(12).reshape(3, 4)[:, ::2]
    target = new_array(arena, strided.shape, strided.dtype)
    staging.send(strided, target)
    np.testing.assert_array_equal(staging.receive(target), strided)


def test_rows_share_the_memory(cuda: CudaDriver) -> None:
    arena, staging = Arena(cuda), Staging(cuda)
    whole = new_array(arena, (1, 8, 2, 4), np.dtype(np.float16))
    content = np.arange(64, dtype=np.float16).reshape(1, 8, 2, 4)
    staging.send(content, whole)
    np.testing.assert_array_equal(staging.receive(whole.rows(3, 5)), content[:, 3:5])
    staging.send(np.zeros((1, 1, 2, 4), np.float16), whole.rows(4, 5))
    assert not staging.receive(whole)[:, 4].any()
    empty = whole.rows(0, 0)
    assert (empty.shape, empty.address, empty.nbytes) == ((1, 0, 2, 4), whole.address, 0)
    assert whole.rows(8, 8).nbytes == 0
    assert staging.receive(empty).shape == (1, 0, 2, 4)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 9)])
def test_rows_outside_are_refused(cuda: CudaDriver, start: int, stop: int) -> None:
    arena = Arena(cuda)
    whole = new_array(arena, (1, 8, 2), np.dtype(np.int64))
    with pytest.raises(ValueError, match="are not in a buffer of"):
        whole.rows(start, stop)
    with pytest.raises(ValueError, match="are not in a buffer of"):
        DeviceArray(whole.address, (2, 4, 2), whole.dtype, whole.block).rows(0, 1)


def test_scratch_grows_and_never_shrinks(cuda: CudaDriver, driver: FakeDriver) -> None:
    scratch = Scratch(cuda)
    scratch.reserve(0)
    assert scratch.address == 0
    scratch.reserve(10_000)
    first = scratch.address
    scratch.reserve(5_000)
    assert scratch.address == first
    scratch.reserve(100_000)
    assert scratch.size_bytes >= 100_000
    assert first not in driver.held
