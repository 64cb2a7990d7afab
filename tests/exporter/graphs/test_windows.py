"""Windows of a whole picture against transformers' own and against a mask over all pairs."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers.vision_utils import get_vision_window_index

from lvlm_export.graphs.windows import WholeWindows
from lvlm_export.reduction.tensors import window_bias
from lvlm_runtime.chain.vision import grid_rows


@pytest.mark.parametrize(("grid", "window"), [((5, 7), 2), (((4, 6)), 2), ((3, 2), 4)])
def test_attention_in_windows_is_attention_under_a_mask(grid: tuple[int, int], window: int) -> None:
    group, count = 4, grid[0] * grid[1] * 4
    drawn = torch.randn((3, 2, 3, count, 8), generator=torch.Generator().manual_seed(6))
    windows = WholeWindows(grid, window, group)
    places = torch.from_numpy(grid_rows(2, grid))
    mask = window_bias(places, window, group, torch.float32)
    wanted = torch.nn.functional.scaled_dot_product_attention(*drawn, attn_mask=mask)
    bias = windows.bias(2, torch.float32)
    out = torch.nn.functional.scaled_dot_product_attention(
        *(windows.split(each) for each in drawn), attn_mask=bias
    )
    got = windows.join(out.transpose(1, 2), 2)
    torch.testing.assert_close(got, wanted.transpose(1, 2), atol=1e-6, rtol=0)
    assert (bias is None) == (grid == (4, 6) or grid == (3, 2))


def test_windows_are_those_of_transformers() -> None:
    windows = WholeWindows((5, 7), 2, 4)
    order, bounds = get_vision_window_index(torch.tensor([[1, 10, 14]]), 2, 16, 4)
    theirs = [
        (order[first // 4 : last // 4, None] * 4 + torch.arange(4)).flatten().tolist()
        for first, last in itertools.pairwise(bounds.tolist())
        if first < last
    ]
    ours = [
        row[~hidden].tolist() for row, hidden in zip(windows.order, windows.hidden, strict=True)
    ]
    assert ours == theirs
