"""Which rewrites a graph gets, and that each is one file with one test file."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvlm_export.graphs import passes
from lvlm_export.graphs.passes import (
    CACHE_REWRITES,
    DIALECT_REWRITES,
    TARGET_REWRITES,
    rewrites,
)
from lvlm_export.plan.targets import DIALECTS, TARGETS

SHARED = {"__init__", "_shared", "errors"}
# For every target, called by graphs.export.
ALWAYS = {"fold_weights", "quantise_weights"}


def names(target: str, dialect: str, reads_cache: bool = False) -> list[str]:
    return [each.__name__ for each in rewrites(target, dialect, reads_cache)]


def test_a_cpu_has_its_own_operators() -> None:
    fused = ["fuse_rms_norm", "fuse_rotary_embedding", "use_group_query_attention"]
    assert names("cpu", "opset24") == names("cpu", "opset24", reads_cache=True) == fused


@pytest.mark.parametrize("target", ["cuda", "rtx", "trt"])
def test_the_traced_dialect_stays_as_it_is_elsewhere(target: str) -> None:
    assert rewrites(target, "opset24") == ()


@pytest.mark.parametrize("target", TARGETS)
def test_the_decomposed_dialect_is_the_same_for_every_target(target: str) -> None:
    plain = ["decompose_attention", "convolve_in_float32", "lower_opset"]
    assert names(target, "decomposed") == plain
    plain.insert(2, "take_sequence_major")
    assert names(target, "decomposed", reads_cache=True) == plain


def test_the_tables_name_targets_and_dialects_that_exist() -> None:
    assert TARGET_REWRITES.keys() <= TARGETS.keys()
    assert DIALECT_REWRITES.keys() <= DIALECTS.keys()
    assert set(CACHE_REWRITES) <= {each for table in DIALECT_REWRITES.values() for each in table}


def test_one_rewrite_is_one_file_and_one_test_file() -> None:
    files = {path.stem for path in Path(passes.__file__).parent.glob("*.py")} - SHARED
    tables = (*DIALECT_REWRITES.values(), *TARGET_REWRITES.values())
    used = {each.__module__.rpartition(".")[2] for table in tables for each in table}
    assert files == used | ALWAYS
    tested = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert files <= tested
