"""The cost model against PyTorch: parameters and FLOPs of whole models, and what a bundle holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

import tiny
from lvlm_export import demo
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.families import ProjectorShape
from lvlm_export.families.shared.projectors import QueccProjector, TokenPacker, patch_maps
from lvlm_profiles.cost.request import TokenPath, by_graph, prefill_works, total, weight_elements
from lvlm_profiles.shapes.dims import ModelDims
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.token_path import token_path

TEXT, PATCHES = 9, 36


def dims_of(directory: Path) -> ModelDims:
    checkpoint = Checkpoint.open(directory)
    return checkpoint.family.shape(checkpoint.config, checkpoint.preprocessor, None).dims


def counted(directory: Path) -> int:
    """PyTorch's count of one prompt's prefill, LM head for the last token only."""
    model = AutoModelForImageTextToText.from_pretrained(directory, attn_implementation="eager")
    ids = torch.tensor([[*range(5), *[259] * PATCHES, *range(TEXT - 5)]])
    pixels = torch.zeros(1, 3, 48, 48)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, pixel_values=pixels, logits_to_keep=1, use_cache=True)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("tower", "text"), [("clip", "llama"), ("siglip", "qwen2")])
def test_flops_are_pytorchs(tower: str, text: str, tmp_path: Path) -> None:
    """Grouped queries, gated MLP, CLS token; a layer after ``vision_feature_layer`` never runs."""
    directory = tiny.llava(tmp_path, tower=tower, text=text)
    dims = dims_of(directory)
    path = TokenPath("none", 1, 1, TEXT, 1, PATCHES, False, ())
    ours = total(prefill_works(dims, path)).flops
    # transformers runs the whole tower and takes an earlier layer's output.
    config = Checkpoint.open(directory).config
    tower_layers = config.vision_config.num_hidden_layers
    whole = replace(dims, vision=replace(dims.vision, layers=tower_layers))
    theirs = counted(directory)
    assert (dims.vision.layers < tower_layers) == (tower == "clip")
    skipped = total(prefill_works(whole, path)).flops - ours
    assert theirs == ours + skipped


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_flops_of_windows_and_planes_are_pytorchs(kind: str, tmp_path: Path) -> None:
    """Four by six tokens, so that no window of two by two is cut off."""
    directory, size, tokens = tiny.qwen_vl(tmp_path, kind), (32, 48), 24
    checkpoint = Checkpoint.open(directory)
    shape = checkpoint.shape(size)
    model = AutoModelForImageTextToText.from_pretrained(directory, attn_implementation="eager")
    ids = torch.tensor([[*range(5), *[259] * tokens, *range(TEXT - 5)]])
    pixels = torch.zeros(1, 3, *size)
    given = checkpoint.family.generate_inputs(
        model, pixels, shape.layouts[0], [size], input_ids=ids
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=1, use_cache=True, **given)
    path = TokenPath("none", 1, 1, TEXT, 1, tokens, False, (), group=4)
    works = prefill_works(shape.dims, path)
    assert total(works).flops == counter.get_total_flops()
    assert len([work for work in works if work.part == "planes"]) == (kind == "qwen3_vl")
    masked = replace(shape.dims.vision, window=0)
    whole = total(prefill_works(replace(shape.dims, vision=masked), path)).flops
    # Three of five layers, 96 patches that see 16 and not 96.
    assert whole - total(works).flops == (kind == "qwen2_5_vl") * 3 * 4 * 96 * (96 - 16) * 32


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_weights_are_the_models_parameters(tower: str, tmp_path: Path) -> None:
    """All but biases, norms and what never runs."""
    directory = tiny.llava(tmp_path, tower=tower)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    dims = dims_of(directory)
    dead = f"vision_tower.encoder.layers.{dims.vision.layers}."
    parameters = {
        name: each for name, each in model.named_parameters() if each.dim() > 1 and dead not in name
    }
    assert weight_elements(dims) == sum(each.numel() for each in parameters.values())


@pytest.mark.parametrize("kind", ["quecc", "tokenpacker"])
def test_trained_projectors_cost_their_maps_over_patches(kind: str) -> None:
    """36 patches of width 32 from two layers to one token; the rest is a thirtieth or so."""
    shape = ProjectorShape(kind, 1, 6, (3, 4), kind == "quecc")
    module = (QueccProjector if kind == "quecc" else TokenPacker)(32, 2, 48, 6, 6)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, PATCHES, 64), torch.zeros(1, 1, 48))
    ours = sum(2 * PATCHES * wide * narrow for wide, narrow in patch_maps(shape, 32))
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_bundle_carries_its_dims(demo_bundle: Path) -> None:
    manifest = Bundle.open(demo_bundle).manifest
    assert manifest.dims == dims_of(demo.CHECKPOINT)
    weights = (demo_bundle / "weights.bin").stat().st_size
    # Biases and norms weigh more in so small a model.
    assert 4 * weight_elements(manifest.dims) == pytest.approx(weights, rel=0.02)


def test_a_bundles_path_has_its_budgets_tokens(demo_bundle: Path) -> None:
    manifest = Bundle.open(demo_bundle).manifest
    for budget in manifest.budgets:
        (layout,) = budget.layouts
        path = token_path(manifest, budget, layout, text_tokens=20, answer_tokens=4)
        stages = [stage.name for stage in (*manifest.vision, *manifest.decoder)]
        works = prefill_works(manifest.dims, path)
        assert [graph for _, graph in by_graph(works) if graph in stages] == stages
        reducers = [work.graph for work in works if work.part == "reducer"]
        assert reducers == [cut.site for cut in (*budget.vision, *layout.decoder)]
        assert path.prompt_tokens(manifest.text.layers - 1) == 20 + layout.tokens_out
        # Each reducer gets the token counts that the runtime's recorder will report.
        entering = {work.graph: work.tokens for work in works if work.part == "reducer"}
        assert {cut.site: cut.tokens_in for cut in budget.vision}.items() <= entering.items()


def test_fewer_tokens_cost_less(demo_bundle: Path) -> None:
    manifest = Bundle.open(demo_bundle).manifest
    costs = {}
    for budget in manifest.budgets:
        path = token_path(manifest, budget, budget.layouts[0], 20, 4)
        costs[budget.ratio] = total(prefill_works(manifest.dims, path)).flops
    assert costs[0.33] < costs[0.5] < costs[1.0]
