"""FLOPs and traffic: published tables, counts by hand, PyTorch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lvlm_profiles.cost.reducers import REDUCERS, is_known
from lvlm_profiles.cost.request import (
    Amount,
    Cut,
    ModelDims,
    TextDims,
    TokenPath,
    VisionDims,
    by_graph,
    decode_works,
    kv_elements,
    paper_layer_flops,
    prefill_works,
    relative_flops,
    total,
)
from lvlm_profiles.cost.units import PRECISIONS, precision_of
from lvlm_profiles.errors import LvlmError

CLIP_L = VisionDims(layers=23, width=1024, mlp=4096, heads=16, patch=14, tokens=576, prefix=1)
VICUNA_7B = TextDims(32, 4096, 11008, True, 32, 32, 128, 32064, False)
LLAVA_7B = ModelDims(CLIP_L, ((1024, 4096), (4096, 4096)), VICUNA_7B)
SIGLIP = VisionDims(layers=26, width=1152, mlp=4304, heads=16, patch=14, tokens=729, prefix=0)
QWEN2_7B = TextDims(28, 3584, 18944, True, 28, 4, 128, 152064, False)
ONEVISION_7B = ModelDims(SIGLIP, ((1152, 3584), (3584, 3584)), QWEN2_7B)
# iLLaVA's published point, one tile.
ILLAVA = (
    Cut("vision", 5, 729, 637),
    Cut("vision", 6, 637, 545),
    Cut("vision", 7, 545, 453),
    Cut("vision", 8, 453, 361),
    Cut("decoder", 8, 361, 253),
)


def request(cuts: tuple[Cut, ...] = (), visual: int = 576, method: str = "none") -> TokenPath:
    return TokenPath(method, 1, 1, 36, 16, visual, False, cuts)


def test_the_papers_flops_per_layer() -> None:
    """METHODS §3: n = 36 + 576; the 99.3 B and 154.6 B that the paper prints."""
    assert paper_layer_flops(612, 4096, 11008) / 1e9 == pytest.approx(99.33, abs=0.005)
    assert paper_layer_flops(612, 5120, 13824) / 1e9 == pytest.approx(154.64, abs=0.005)


@pytest.mark.parametrize(
    ("layer", "removed", "percent_7b", "percent_13b", "giga_7b"),
    [
        (2, 0.90, 20.3, 19.3, 20.1),
        (2, 0.75, 33.2, 32.5, 33.0),
        (2, 0.50, 55.2, 54.7, 54.8),
        (2, 0.25, 77.4, 77.2, 76.9),
        (3, 0.90, 22.9, 21.4, None),
        (3, 0.75, 35.4, 34.2, None),
        (3, 0.50, 56.7, 55.9, 56.3),
        (5, 0.75, 39.9, 37.8, None),
        (5, 0.50, 59.6, 58.3, None),
    ],
)
def test_fastv_flops_are_the_published_table(
    layer: int, removed: float, percent_7b: float, percent_13b: float, giga_7b: float | None
) -> None:
    share = relative_flops(layer, removed, 612, 576, 4096, 11008, 32)
    assert 100 * share == pytest.approx(percent_7b, abs=0.051)
    if giga_7b is not None:
        assert share * paper_layer_flops(612, 4096, 11008) / 1e9 == pytest.approx(giga_7b, abs=0.05)
    share = relative_flops(layer, removed, 612, 576, 5120, 13824, 40)
    assert 100 * share == pytest.approx(percent_13b, abs=0.051)


@pytest.mark.parametrize(("visual", "tera"), [(192, 1.839), (128, 1.417), (64, 0.997)])
def test_restores_flops_are_the_gated_convention(visual: int, tera: float) -> None:
    """Shared golden data, RESTORE table 8: LLaVA-1.5-7B; its text is 89 tokens long."""
    found = 32 * paper_layer_flops(visual + 89, 4096, 11008, gated=True) / 1e12
    assert found == pytest.approx(tera, abs=0.0015)


def test_exact_flops_are_twice_the_gated_convention_without_grouped_queries() -> None:
    decoder = by_graph(prefill_works(LLAVA_7B, request()))["prefill", "decoder.0"]
    assert decoder.flops == 32 * 2 * paper_layer_flops(612, 4096, 11008, gated=True)


def test_grouped_queries_have_smaller_key_and_value_maps() -> None:
    path = request(visual=729)
    decoder = by_graph(prefill_works(ONEVISION_7B, path))["prefill", "decoder.0"]
    n, d, m = 765, 3584, 18944
    layer = 2 * n * (d * d + 2 * d * 512 + d * d + 3 * d * m) + 4 * n * n * d
    assert decoder.flops == 28 * layer
    assert decoder.kv_written == 28 * n * 2 * 512


def test_illavas_flops_are_the_count_by_hand() -> None:
    """729 → 361 over vision layers 5 to 8 and 361 → 253 at decoder layer 8 of 28."""
    whole = request(tuple(replace(cut, tokens_in=729, tokens_out=729) for cut in ILLAVA), 729)
    reduced = request(ILLAVA, 361, "illava")
    d, m, attends, feeds = 1152, 4304, 26 * [729], 26 * [729]
    attends[5:] = [729, 637, 545, 453] + 17 * [361]
    feeds[5:] = [637, 545, 453, 361] + 17 * [361]

    def tower(attends: list[int], feeds: list[int]) -> int:
        attention = sum(8 * n * d * d + 4 * n * n * d for n in attends)
        return attention + sum(4 * n * d * m for n in feeds)

    def decoder(counts: list[int]) -> int:
        w, k, f = 3584, 512, 18944
        linear = 2 * (2 * w * w + 2 * w * k + 3 * w * f)
        return sum(n * linear + 4 * n * n * w for n in counts)

    def flops(path: TokenPath, part: str) -> int:
        return sum(w.amount.flops for w in prefill_works(ONEVISION_7B, path) if w.part == part)

    by_hand = tower(attends, feeds) + decoder(8 * [36 + 361] + 20 * [36 + 253])
    assert flops(reduced, "layers") == by_hand
    assert flops(whole, "layers") == tower(26 * [729], 26 * [729]) + decoder(28 * [36 + 729])
    # The projector sees what the tower keeps, and the reducers cost little beside what they save.
    assert flops(reduced, "projector") * 729 == flops(whole, "projector") * 361
    assert 0 < flops(reduced, "reducer") < 0.01 * by_hand
    assert flops(whole, "reducer") == 0


def test_stages_are_named_as_the_chain_names_them() -> None:
    works = prefill_works(ONEVISION_7B, request(ILLAVA, 361, "illava"))
    vision = [f"{kind}{index}" for index in range(4) for kind in ("vision.", "vision@")]
    vision = [name.replace(f"@{i}", f"@{i + 5}") for i in range(4) for name in vision[2 * i :][:2]]
    prefill = ["embedding", "assemble", "decoder.0", "decoder@8", "decoder.1", "lm_head"]
    expected = [("vision", name) for name in [*vision, "vision.4"]]
    assert list(by_graph(works)) == expected + [("prefill", name) for name in prefill]
    entering = {work.graph: work.tokens for work in works if work.part in ("layers", "reducer")}
    assert (entering["vision.0"], entering["vision.4"]) == (729, 361)
    assert (entering["decoder.0"], entering["decoder@8"], entering["decoder.1"]) == (397, 397, 289)


def test_a_smaller_picture_makes_the_whole_tower_cheaper() -> None:
    works = prefill_works(LLAVA_7B, request((Cut("pixels", 0, 576, 144),), 144, "downsample"))
    graphs = by_graph(works)
    assert list(graphs)[:2] == [("vision", "pixels@0"), ("vision", "vision.0")]
    # 336 pixels to 168 in blocks of two by one: rows, then columns.
    resize = graphs["vision", "pixels@0"]
    assert resize.flops == 2 * 3 * (168 * 336 * 2 + 168 * 168 * 2)
    assert resize.activations == 3 * (336**2 + 2 * 336 * 168 + 168**2)
    n, d, m = 145, 1024, 4096
    layers = 23 * (8 * n * d * d + 4 * n * n * d + 4 * n * d * m)
    projector = 2 * 144 * (1024 * 4096 + 4096 * 4096)
    assert graphs["vision", "vision.0"].flops == layers + projector + 2 * 144 * 588 * d


def test_windows_cost_less_until_a_token_leaves() -> None:
    """Under a mask every pair is computed, at the site too; a plane is the projector again."""
    tower = VisionDims(8, 32, 64, 2, 14, 256, 0, 6, window=64, whole_layers=(3, 7), planes=(2, 6))
    dims = replace(ONEVISION_7B, vision=tower, projector=((128, 128), (128, 3584)))
    path = replace(request((Cut("vision", 4, 64, 32),), 32, "illava"), group=4)
    graphs = by_graph(prefill_works(dims, path))
    d, m = 32, 64

    def layer(rows: int, seen: int) -> int:
        return 8 * rows * d * d + 4 * rows * seen * d + 4 * rows * d * m

    def plane(tokens: int) -> int:
        return 2 * tokens * (128 * 128 + 128 * 3584)

    before = 3 * layer(256, 64) + layer(256, 256) + layer(256, 256) - 4 * 256 * d * m
    assert graphs["vision", "vision.0"].flops == before + plane(64) + 2 * 256 * 6 * 14**2 * d
    after = 4 * 128 * d * m + 3 * layer(128, 128)
    assert graphs["vision", "vision.1"].flops == after + plane(32) + plane(32)


def test_a_projector_that_reads_the_question_costs_a_pass_of_it() -> None:
    plain = request(visual=36)
    condensed = replace(plain, condensed=True, query_tokens=36)
    graphs = by_graph(prefill_works(LLAVA_7B, condensed))
    assert list(graphs)[:3] == [
        ("vision", "vision.0"),
        ("prefill", "query"),
        ("vision", "projector"),
    ]
    query = graphs["prefill", "query"]
    assert query.flops == 32 * 2 * paper_layer_flops(36, 4096, 11008, gated=True)
    whole, without = (total(prefill_works(LLAVA_7B, each)).flops for each in (condensed, plain))
    assert whole == without + query.flops


def test_tiles_multiply_arithmetic_and_not_weights() -> None:
    one, five = request(), replace(request(), tiles=5)
    first, second = (
        by_graph(prefill_works(LLAVA_7B, each))["vision", "vision.0"] for each in (one, five)
    )
    assert second.flops == 5 * first.flops
    assert second.weights == first.weights


def test_a_decode_step_reads_all_weights_and_the_cache() -> None:
    works = decode_works(LLAVA_7B, request(), step=3)
    amount = total(works)
    assert amount.kv_read == 32 * (612 + 4) * 2 * 4096
    assert amount.kv_written == 32 * 2 * 4096
    assert amount.weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32064
    assert [work.graph for work in works] == ["embedding", "decoder.0", "lm_head"]


def test_caches_hold_what_each_layer_sees() -> None:
    whole = kv_elements(ONEVISION_7B, request(visual=729))
    assert whole == 28 * 2 * 512 * (36 + 729 + 16)
    reduced = kv_elements(ONEVISION_7B, request(ILLAVA, 361))
    assert reduced == 2 * 512 * (8 * (36 + 361 + 16) + 20 * (36 + 253 + 16))


def test_a_text_only_request_has_no_picture() -> None:
    path = TokenPath("none", 0, 0, 20, 4, 576, False, ())
    works = prefill_works(LLAVA_7B, path)
    assert total(work for work in works if work.phase == "vision").flops == 0
    assert [work.graph for work in works if work.phase == "prefill"] == [
        "embedding",
        "decoder.0",
        "lm_head",
    ]


@pytest.mark.parametrize("method", sorted(REDUCERS))
def test_every_reducer_moves_at_least_its_rows(method: str) -> None:
    for stage in REDUCERS[method]:
        cut = Cut(stage, 23 if stage == "features" else 2, 576, 192)
        works = prefill_works(LLAVA_7B, request((cut,), 576, method))
        (reducer,) = [work for work in works if work.part == "reducer"]
        assert reducer.graph == cut.name
        assert reducer.amount.activations >= (576 + 192) * 1024


def test_greedy_reducers_cost_what_their_papers_say() -> None:
    """DivPrune: all cosines of 576 tokens of 4096; CDPruner: the text's and K² V on top."""
    cut = Cut("projected", 0, 576, 192)
    amounts = {}
    for method in ("divprune", "cdpruner"):
        works = prefill_works(LLAVA_7B, request((cut,), 576, method))
        amounts[method] = next(work.amount for work in works if work.part == "reducer")
    assert amounts["divprune"].flops == 2 * 576**2 * 4096
    text = 2 * 576 * 36 * 4096
    assert amounts["cdpruner"].flops == amounts["divprune"].flops + text + 192**2 * 576


def test_unknown_methods_are_told() -> None:
    assert is_known("illava")
    assert is_known("visionzip+fastv")
    assert is_known("none")
    assert not is_known("visionzip+brandnew")


def test_bytes_follow_the_precision() -> None:
    amount = Amount(flops=5, weights=100, activations=10, kv_read=20, kv_written=30)
    assert amount.size_bytes("fp32") == 4 * 160
    assert amount.size_bytes("float16") == amount.size_bytes("fp16") == 2 * 160
    assert amount.size_bytes("int8") == 100 + 2 * 60
    # An fp16 scale per block of 32 weights.
    assert amount.size_bytes("int4") == pytest.approx(100 * (4 + 16 / 32) / 8 + 2 * 60)
    with pytest.raises(LvlmError, match="unknown precision 'fp7'; known: fp32, fp16, bf16, int8"):
        precision_of("fp7")
    assert set(PRECISIONS) >= {"fp32", "fp16"}


def test_a_precision_is_found_by_both_names() -> None:
    for name in ("fp32", "fp16", "bf16"):
        assert precision_of(precision_of(name).numpy_name) is PRECISIONS[name]
    # Their activations are float16 unless a device says otherwise.
    assert precision_of("int4").numpy_name == precision_of("int8").numpy_name == "float16"
    assert [name for name, each in PRECISIONS.items() if each.quantised] == ["int8", "int4"]
