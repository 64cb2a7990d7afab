"""What a rewrite says about a graph that it does not know."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import tiny
from command_line import typed
from lvlm_export.graphs.passes import errors
from lvlm_export.graphs.passes.errors import PassError
from lvlm_export.plan.versions import TESTED_TRANSFORMERS, versions

ROOT = Path(__file__).resolve().parents[4]
NODE = ir.node("Reshape", [], name="layers.0.self_attn/Reshape")


def install(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that transformers were installed."""
    monkeypatch.setattr(errors, "versions", lambda: {"transformers": version})


def test_another_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install("5.24.0", monkeypatch)
    assert str(PassError("fuse_rotary", NODE, "Transpose then Reshape", "Neg")) == (
        "fuse_rotary: node layers.0.self_attn/Reshape (Reshape): expected Transpose then Reshape,"
        " found Neg; the graph was traced with transformers 5.24.0, tested is"
        f" {TESTED_TRANSFORMERS}: install that version or report it"
    )


def test_the_tested_transformers_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    install(TESTED_TRANSFORMERS, monkeypatch)
    assert str(PassError("fuse_rotary", NODE, "Transpose", "Neg")).endswith(
        f"; the graph was traced with transformers {TESTED_TRANSFORMERS}, the tested version:"
        " report it"
    )


def test_a_graph_a_node_without_a_name_and_another_remedy() -> None:
    graph = ir.Graph([], [], nodes=[], name="decoder.0")
    assert str(PassError("pass", graph, "an input", "none", "do this")) == (
        "pass: graph decoder.0: expected an input, found none; do this"
    )
    node = ir.node("Neg", [])
    node.outputs[0].name = "turned"
    assert str(PassError("pass", node, "x", "y", "z")).startswith("pass: node of turned (Neg): ")


def test_the_tested_version_is_that_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"transformers=={TESTED_TRANSFORMERS}" in lines
    assert "transformers" in versions()


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("5.24.0", monkeypatch)

    def rewrite(model: ir.Model) -> bool:
        raise PassError("fuse_rotary", model.graph[0], "Transpose then Reshape", "Neg")

    monkeypatch.setattr("lvlm_export.bundle.build.rewrites", lambda *_: (rewrite,))
    path = tiny.llava(tmp_path / "checkpoint")
    result = typed("build", "--model", path, "--ratio", "0.5", "-o", tmp_path / "bundle")
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith(
        "error: fuse_rotary: node vision.0/Shape (Shape): expected Transpose then"
    )
    assert line.endswith("tested is 5.23.0: install that version or report it")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "bundle").exists()
