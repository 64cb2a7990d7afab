"""Trained projectors: against plain statements of the papers, and as graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

import tiny
from command_line import error_line, typed
from lvlm_export.families import load_family
from lvlm_export.families.shared.projectors import (
    QueccProjector,
    TokenPacker,
    projector_kind,
    projector_shape,
    shrink_grid,
)
from lvlm_export.graphs.trace import Signature, trace
from lvlm_runtime.errors import LvlmError

SIDE, WIDTH, LEVELS, TEXT = 24, 16, 4, 24
# Cells of a 24 x 24 grid and the tokens they leave, QueCC's published budgets.
PUBLISHED = [(24, 1), (12, 4), (6, 16), (4, 36), (2, 144)]
KINDS = {"quecc": QueccProjector, "tokenpacker": TokenPacker}


def projector(kind: str, cell: int) -> nn.Module:
    torch.manual_seed(cell)
    module = KINDS[kind](WIDTH, LEVELS, TEXT, SIDE, cell)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def in_cell(grid: Tensor, row: int, col: int, cell: int) -> Tensor:
    """Patches ``[s², C]`` of one cell of a picture ``[side, side, C]``."""
    rows = grid[row * cell : (row + 1) * cell, col * cell : (col + 1) * cell]
    return rows.reshape(cell * cell, -1)


def plain_quecc(module: QueccProjector, features: Tensor, query: Tensor, cell: int) -> Tensor:
    """METHODS §4, one picture and one cell after the other."""
    compressor, first, last = module[0], module[1], module[3]
    pictures = []
    for picture in features:
        queries = picture[:, -WIDTH:] + compressor.text_projection(query.reshape(TEXT))
        grid = compressor.q_proj(queries).reshape(SIDE, SIDE, WIDTH)
        keys = compressor.k_proj(picture).reshape(SIDE, SIDE, WIDTH)
        values = compressor.v_proj(picture).reshape(SIDE, SIDE, WIDTH)
        kernel, bias = compressor.q_downsample.weight[:, 0], compressor.q_downsample.bias
        tokens = []
        for row in range(SIDE // cell):
            for col in range(SIDE // cell):
                flat = kernel.reshape(WIDTH, -1).T
                wanted = (in_cell(grid, row, col, cell) * flat).sum(0) + bias
                out, _ = compressor.clip_attn(
                    wanted[None, None],
                    in_cell(keys, row, col, cell)[None],
                    in_cell(values, row, col, cell)[None],
                )
                tokens.append(last(nn.functional.gelu(first(out[0, 0]))))
        pictures.append(torch.stack(tokens))
    return torch.stack(pictures)


def plain_tokenpacker(module: TokenPacker, features: Tensor, cell: int) -> Tensor:
    """METHODS §9, one picture and one cell after the other."""
    pictures = []
    for picture in features:
        x0 = picture[:, -WIDTH:].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
        size = (SIDE // cell, SIDE // cell)
        coarse = nn.functional.interpolate(x0, size=size, mode="bilinear")[0].permute(1, 2, 0)
        keys = module.ln_k_1(module.k_proj_1(picture)).reshape(SIDE, SIDE, WIDTH)
        values = module.ln_v_1(module.v_proj_1(picture)).reshape(SIDE, SIDE, WIDTH)
        tokens = []
        for row in range(size[0]):
            for col in range(size[1]):
                wanted = module.ln_q_1(coarse[row, col] @ module.q_proj_1.weight.T)
                # The authors' attention is not batch-first.
                out, _ = module.clip_attn(
                    wanted[None, None],
                    in_cell(keys, row, col, cell)[:, None],
                    in_cell(values, row, col, cell)[:, None],
                )
                tokens.append(module.mlp(out[0, 0]))
        pictures.append(torch.stack(tokens))
    return torch.stack(pictures)


@pytest.mark.parametrize(("cell", "tokens"), PUBLISHED)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_projector_equals_the_plain_statement(kind: str, cell: int, tokens: int) -> None:
    module = projector(kind, cell)
    features, query = torch.randn(2, SIDE * SIDE, LEVELS * WIDTH), torch.randn(1, 1, TEXT)
    plain = plain_quecc if kind == "quecc" else plain_tokenpacker
    expected = plain(module, features, *([query] if kind == "quecc" else []), cell)
    assert expected.shape == (2, tokens, TEXT)
    torch.testing.assert_close(module(features, query), expected, rtol=1e-4, atol=1e-4)


# One count of each kind by default; tracing takes seconds.
TRACED = [
    pytest.param(kind, cell, marks=() if cell == 6 else pytest.mark.slow)
    for kind in KINDS
    for cell, _ in PUBLISHED
]


@pytest.mark.parametrize(("kind", "cell"), TRACED)
@torch.no_grad()
def test_the_graph_equals_the_module(kind: str, cell: int, tmp_path: Path) -> None:
    module = projector(kind, cell)
    features, query = torch.randn(2, SIDE * SIDE, LEVELS * WIDTH), torch.randn(1, 1, TEXT)
    expected = module(features, query)
    names = ("features", "query") if kind == "quecc" else ("features",)
    given = (features, query)[: len(names)]
    axes = ({0: torch.export.Dim("images", min=1, max=64)}, None)[: len(names)]
    program = trace(module, given, Signature(names, ("visual",), axes))
    program.save(tmp_path / "projector.onnx")
    session = ort.InferenceSession(tmp_path / "projector.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2):
        feeds = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        feeds["features"] = feeds["features"][:count]
        (got,) = session.run(None, feeds)
        torch.testing.assert_close(torch.from_numpy(got), expected[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", [1, 2, 3, 4, 6, 12])
def test_shrinking_by_a_whole_number_is_bilinear(cell: int) -> None:
    tokens = torch.randn(2, SIDE * SIDE, 5)
    grid = tokens.reshape(2, SIDE, SIDE, 5).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, size=(SIDE // cell,) * 2, mode="bilinear")
    torch.testing.assert_close(shrink_grid(tokens, SIDE, cell), expected.flatten(2).transpose(1, 2))


def test_parameters_have_the_authors_names_and_shapes() -> None:
    quecc = {name: tuple(p.shape) for name, p in projector("quecc", 4).named_parameters()}
    assert quecc["0.q_downsample.weight"] == (WIDTH, 1, 4, 4)
    assert quecc["0.text_projection.0.weight"] == (WIDTH, TEXT)
    assert quecc["0.k_proj.0.weight"] == (WIDTH, LEVELS * WIDTH)
    assert quecc["0.clip_attn.in_proj_weight"] == (3 * WIDTH, WIDTH)
    assert (quecc["1.weight"], quecc["3.weight"]) == ((TEXT, WIDTH), (TEXT, TEXT))
    packer = {name: tuple(p.shape) for name, p in projector("tokenpacker", 2).named_parameters()}
    assert "q_proj_1.bias" not in packer
    assert packer["v_proj_1.0.weight"] == (WIDTH, LEVELS * WIDTH)
    assert packer["ln_q_1.weight"] == (WIDTH,)
    assert (packer["mlp.0.weight"], packer["mlp.2.weight"]) == ((TEXT, WIDTH), (TEXT, TEXT))


def test_parameters_are_as_many_as_published() -> None:
    """36.7 M for TokenPacker, 21.0 to 21.6 M before the MLP for QueCC, at LLaVA-1.5-7B's sizes."""
    count = lambda module: sum(p.numel() for p in module.parameters()) / 1e6  # noqa: E731
    with torch.device("meta"):
        packer = TokenPacker(1024, 4, 4096, 24, 2)
        quecc = [QueccProjector(1024, 4, 4096, 24, cell)[0] for cell, _ in PUBLISHED]
    assert count(packer) == pytest.approx(36.7, abs=0.05)
    assert min(map(count, quecc)) == pytest.approx(21.0, abs=0.05)
    assert max(map(count, quecc)) == pytest.approx(21.6, abs=0.05)


def config_of(**changes: Any) -> LlavaConfig:
    vision, text = tiny.vision_config("clip", image_size=96), tiny.text_config("llama")
    return LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        **{"vision_feature_layer": [1, 3, -2], **changes},
    )


@pytest.mark.parametrize(
    ("changes", "kind", "tokens"),
    [
        ({"mm_projector_type": "tokenpacker"}, "tokenpacker", 36),
        ({"projector_type": "tokenpacker", "scale_factor": 4}, "tokenpacker", 9),
        ({"mm_vision_token_compression_type": "quecc"}, "quecc", 9),
        ({"projector_type": "quecc", "mm_vision_token_compression_kernel_size": 12}, "quecc", 1),
    ],
)
def test_the_configuration_says_which_projector(
    changes: dict[str, Any], kind: str, tokens: int
) -> None:
    shape = projector_shape(config_of(**changes))
    assert shape is not None
    assert (shape.kind, shape.tokens, shape.levels) == (kind, tokens, (1, 3, 4))


def test_a_checkpoint_without_those_keys_is_what_it_was() -> None:
    for changes in ({}, {"mm_projector_type": "mlp2x_gelu"}, {"projector_type": "linear"}):
        config = config_of(vision_feature_layer=-2, **changes)
        assert projector_kind(config) is None
        family = load_family("llava")
        assert family.model_class(config) is LlavaForConditionalGeneration


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mm_vision_token_compression_type": "voco"}, "'voco' is not supported; known: quecc, "),
        (
            {"mm_projector_type": "tokenpacker", "scale_factor": 5},
            "cells of 5 x 5 does not fit the tower's 12 x 12 patches; the edge must divide 12",
        ),
        (
            {
                "projector_type": "quecc",
                "mm_vision_token_compression_kernel_size": 4,
                "mm_vision_token_compression_stride": 2,
            },
            "kernel 4 and stride 2 is not supported",
        ),
        (
            {"projector_type": "quecc", "vision_feature_layer": [3, 1]},
            "it takes ascending layers of the tower's 5, the last one gives the queries",
        ),
        ({"projector_type": "quecc", "vision_feature_layer": [1, 9]}, "takes ascending layers"),
    ],
)
def test_a_projector_that_does_not_fit_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(LvlmError, match=line):
        projector_shape(config_of(**changes))


def test_heads_must_divide_the_towers_width() -> None:
    config = config_of(projector_type="quecc")
    config.vision_config.hidden_size = 36
    with pytest.raises(LvlmError, match="has 8 heads, which do not divide the tower's width 36"):
        projector_shape(config)


def test_methods_before_the_projector_are_refused(tmp_path: Path) -> None:
    path = tiny.projected(tmp_path / "checkpoint", "tokenpacker", 2)
    words = ("build", "--model", path, "--ratio", "0.5", "-o", tmp_path / "bundle")
    line = error_line(typed(*words), 2)
    assert "local acts at vision@0, before the model's tokenpacker projector" in line
    assert "take a method that acts after it, or --ratio 1" in line


def test_a_projector_and_tiles_do_not_go_together(tmp_path: Path) -> None:
    path = tiny.onevision(tmp_path / "onevision")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "projector_type": "quecc"}))
    line = error_line(typed("build", "--model", path, "--ratio", "1", "-o", tmp_path / "b"), 1)
    assert "projector quecc is not supported with tiles; its layout is llava's" in line
