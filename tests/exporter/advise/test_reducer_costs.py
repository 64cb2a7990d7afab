"""The cost model's count of every method's reducers, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.graphs.reducers import make_reducer, reducer_inputs
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.reduction import METHODS
from lvlm_profiles.cost.reducers import ELSEWHERE, REDUCERS, is_known
from lvlm_profiles.cost.request import Cut, TokenPath, prefill_works
from lvlm_runtime.errors import UsageError

IMAGES, TEXT = 2, 9


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, ...]:
    directory = tmp_path_factory.mktemp("tiny")
    paths = (tiny.llava(directory / "llava"), tiny.onevision(directory / "onevision"))
    return tuple(Checkpoint.open(path) for path in paths)


def test_the_table_has_no_method_that_is_gone() -> None:
    assert {*REDUCERS, *ELSEWHERE} <= set(METHODS)
    # A method may have no entry: its reducers then count as a gather, and ``plan`` notes it.
    assert is_known("illava")


@pytest.mark.parametrize("method", sorted({*REDUCERS, *ELSEWHERE} - {"none"}))
def test_products_are_what_pytorch_counts(method: str, checkpoints: tuple[Checkpoint, ...]) -> None:
    """Exact for most; greedy and clustering steps within a tenth of so small a model's products."""
    compared = 0
    for checkpoint in checkpoints:
        try:
            plan = make_plan(checkpoint, BuildOptions((0.33,), method=method))
        except UsageError:
            continue
        budget = plan.budgets[0]
        for count in (*budget.vision, *budget.layouts[0].counts):
            reducer = make_reducer(plan, count)
            inputs, _ = reducer_inputs(plan, reducer, torch.float32)
            feeds = dict(zip(reducer.inputs, inputs, strict=True))
            text = len(feeds["text_index"]) if "text_index" in feeds else TEXT
            if "visual_embeds" in feeds:
                # What entered the decoder: here as many as enter the site, to be of one size.
                feeds["visual_embeds"] = feeds["visual_embeds"][:, : count.tokens_in]
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                reducer(*feeds.values())
            cut = Cut(count.site.stage, count.site.layer, count.tokens_in, count.tokens_out)
            path = TokenPath(method, IMAGES, IMAGES, text, 1, count.tokens_in, False, (cut,))
            works = prefill_works(plan.shape.dims, path)
            (ours,) = [work.amount.flops for work in works if work.part == "reducer"]
            assert ours == pytest.approx(counter.get_total_flops(), rel=0.1)
            compared += 1
    assert compared
