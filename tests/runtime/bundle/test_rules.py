"""A manifest that contradicts itself is refused in one line, whatever is wrong with it."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvlm_runtime.bundle.bundle import DIGEST, MANIFEST, Bundle, read_manifest
from lvlm_runtime.bundle.manifest import to_json
from lvlm_runtime.bundle.rules import RULES, check_manifest
from lvlm_runtime.errors import LvlmError

Content = dict[str, Any]
HASH = "0" * 64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_quecc: Path) -> Path:
    """A bundle whose manifest is written anew for every case."""
    return Path(shutil.copytree(tiny_quecc / "bundle", tmp_path_factory.mktemp("rules") / "bundle"))


@pytest.fixture(scope="module")
def content(tiny_quecc: Path) -> Content:
    """Its manifest as plain JSON types, without the digest."""
    manifest = json.loads(json.dumps(to_json(read_manifest(tiny_quecc / "bundle"))))
    assert isinstance(manifest, dict)
    return manifest


def write(place: Path, content: Content) -> None:
    """A manifest with the digest that it should have, as somebody would who can compute one."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (place / MANIFEST).write_text(json.dumps({DIGEST: digest, **content}), encoding="utf-8")


def first_weight(content: Content) -> Content:
    weight: Content = next(iter(content["weights"].values()))
    return weight


def rename(key: str, new: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["files"][new] = content["files"].pop(key)

    return change


def put(value: object, *way: str | int) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        at: Any = content
        for step in way[:-1]:
            at = at[step]
        at[way[-1]] = value

    return change


def add_decoder_site(content: Content) -> None:
    content["budgets"][0]["layouts"][0]["decoder"] *= 2


DAMAGES: dict[str, tuple[Callable[[Content], None], str]] = {
    "absolute": (
        rename("assemble.onnx", "/etc/passwd"),
        r"files: expected plain names .*'/etc/passwd'",
    ),
    "outside": (
        rename("assemble.onnx", "../x.onnx"),
        r"files: expected plain names .*'\.\./x\.onnx'",
    ),
    "dots inside": (rename("assemble.onnx", "a/../x.onnx"), r"files: expected plain names inside"),
    "backslash": (rename("assemble.onnx", "..\\x.onnx"), r"files: expected plain names inside"),
    "drive": (rename("assemble.onnx", "C:x.onnx"), r"files: expected plain names inside"),
    "escape": (rename("assemble.onnx", "\x1b[2Jx.onnx"), r"got '\\x1b\[2Jx\.onnx'"),
    "NUL": (rename("assemble.onnx", "a\0.onnx"), r"files: expected plain names inside"),
    "hidden": (rename("assemble.onnx", ".verified.json"), r"files: expected plain names inside"),
    "the manifest": (
        rename("assemble.onnx", MANIFEST),
        r"names that have no other use, got 'manifest",
    ),
    "an engine": (rename("assemble.onnx", "engines/rtx/record.json"), r"that have no other use"),
    "no weights": (rename("weights.bin", "other.bin"), r"files: expected weights\.bin, got none"),
    "a size": (put(-1, "files", "weights.bin", "size_bytes"), r"expected a size, got -1"),
    "a hash": (put("xyz", "files", "weights.bin", "sha256"), r"expected a SHA-256, got 'xyz'"),
    "precision": (put("float8", "precision"), r"precision: expected one of float32, .*'float8'"),
    "a part": (put({"tower": "int8"}, "quantised"), r"quantised: expected vision as int8\|int4"),
    "a head of blocks": (put({"lm_head": "int4"}, "quantised"), r"got 'lm_head' as 'int4'"),
    "a table of integers": (
        put({"lm_head": "int8"}, "quantised"),
        r"text\.embed_tokens\.dtype: expected int8, got 'float32'",
    ),
    "scales of a table of floats": (
        lambda c: c["text"].update(embed_scales=c["text"]["embed_tokens"]),
        r"text\.embed_scales: expected scales of an int8 table and no others",
    ),
    "dialect": (put("opset99", "dialect"), r"dialect: expected one of opset24, decomposed, got"),
    "caches": (put("diagonal", "kv_layout"), r"kv_layout: expected one of head_major, sequence"),
    "resize": (put("stretch", "preprocess", "resize"), r"preprocess\.resize: expected one of None"),
    "resample": (put(77, "preprocess", "resample"), r"preprocess\.resample: expected one of 0, 1"),
    "no vision": (put([], "vision"), r"vision: expected at least one subgraph, got none"),
    "no decoder": (put([], "decoder"), r"decoder: expected at least one subgraph, got none"),
    "no head": (put([], "lm_head"), r"lm_head: expected at least one graph, got none"),
    "a name": (put("decoder.7", "decoder", 0, "name"), r"expected decoder\.0, got 'decoder\.7'"),
    "a site": (put("moon@3", "decoder", 0, "site"), r"expected sites of its own.*'moon@3'"),
    "an input": (put(["pixels"], "vision", 0, "inputs"), r"vision\[0\]\.inputs: expected of pixel"),
    "some count sizes": (
        put(["size_bias"], "decoder", 0, "inputs"),
        r"decoder\[1\]\.inputs: expected \('size_bias',\), as of the first",
    ),
    "a plane": (put(["plane.99"], "decoder", 0, "inputs"), "seen_from and planes of its layers"),
    "an attention": (put("sideways", "text", "attention"), r"expected one of causal, prefix, pict"),
    "rows that see": (
        put("prefix", "text", "attention"),
        r"decoder\[0\]\.inputs: expected seen_to where text\.attention is not causal",
    ),
    "a scale": (put(0.0, "text", "embed_scale"), r"embed_scale: expected more than 0 and at most"),
    "a decoder input": (
        put(["sizes"], "decoder", 0, "inputs"),
        "expected of size_bias, seen_to, seen_from, got",
    ),
    "projector": (put(["query"], "projector", "inputs"), r"projector\.inputs: expected features"),
    "a gap": (put(1, "decoder", 0, "first_layer"), r"decoder\[0\]: expected layers from 0 on"),
    "layers": (put(99, "text", "layers"), r"text\.layers: expected the 4 layers .* got 99"),
    "site's layer": (put("decoder@3", "decoder", 0, "site"), r"\.site: expected decoder@\d"),
    "vision layers": (put(2, "vision", 0, "last_layer"), r"vision\[0\]: expected layers 0 to 0"),
    "a graph": (put("other.onnx", "assemble"), r"every graph that a chain .* got no 'other\.onnx'"),
    "no graph": (put("weights.bin", "assemble"), r"every graph that a chain .* got no 'weights"),
    "a count": (put(0, "text", "kv_heads"), r"text\.kv_heads: expected 1 to \d+, got 0"),
    "a large count": (put(1 << 40, "vision_tokens"), r"vision_tokens: expected 1 to \d+, got"),
    "no such stop": (
        put([1 << 20], "text", "stop_ids"),
        r"text\.stop_ids\[0\]: expected a token below \d+, got 1048576",
    ),
    "a stop": (put([-1], "text", "stop_ids"), r"text\.stop_ids\[0\]: expected 0 to \d+, got -1"),
    "pixels": (put(0, "preprocess", "height"), r"preprocess\.height: expected 1 to \d+, got 0"),
    "no size": (put(None, "preprocess", "height"), r"preprocess: expected a size to resize to"),
    "colour": (put([0, 0, 256], "preprocess", "pad_to_square"), r"a colour of 0 to 255, got 256"),
    "std": (put([1, 0, 1], "preprocess", "std"), r"preprocess\.std: expected finite numbers"),
    "type": (lambda c: first_weight(c).update(dtype="complex64"), r"\.dtype: expected one of"),
    "shape": (lambda c: first_weight(c).update(shape=[3, 5]), r"expected that of \[3, 5\] in"),
    "negative": (lambda c: first_weight(c).update(shape=[-1, -1]), r"\.size_bytes: expected that"),
    "offset": (lambda c: first_weight(c).update(offset=1 << 40), r"\.offset: expected a place in"),
    "before": (lambda c: first_weight(c).update(offset=-8), r"\.offset: expected a place in the"),
    "weight's hash": (lambda c: first_weight(c).update(sha256=HASH), r"by their SHA-256"),
    "table's hash": (put(HASH, "text", "embed_tokens", "sha256"), r"one of the weights, got '000"),
    "table's shape": (put(7, "text", "vocab_size"), r"embed_tokens\.shape: expected \[7, "),
    "no ratio": (put([], "budgets"), r"budgets: expected at least one ratio, got none"),
    "ratio 0": (put(0, "budgets", 0, "ratio"), r"more than 0 and at most 1, got 0"),
    "ratio 2": (put(2, "budgets", 0, "ratio"), r"more than 0 and at most 1, got 2"),
    "twice": (put(1.0, "budgets", 0, "ratio"), r"expected ratios that stand once, got 1"),
    "layouts": (put([], "budgets", 0, "layouts"), r"expected the layouts \['image'\], got \[\]"),
    "no layout": (put([], "layouts"), r"layouts: expected at least one, each once, got \[\]"),
    "achieved": (
        put(-0.5, "budgets", 0, "layouts", 0, "achieved"),
        r"achieved: expected 0 to 1, got -0\.5",
    ),
    "a jump": (
        put(1, "budgets", 0, "layouts", 0, "decoder", 0, "tokens_in"),
        r"tokens_in: expected the \d+ before it, got 1",
    ),
    "a rise": (
        put(99, "budgets", 0, "layouts", 0, "decoder", 0, "tokens_out"),
        r"tokens_out: expected 0 to \d+, got 99",
    ),
    "twice reduced": (add_decoder_site, r"expected a site of the chain, in its order"),
    "tile's tokens": (
        put(999, "budgets", 0, "layouts", 0, "tokens_in"),
        r"tokens_in: expected the \d+ of a tile, got 999",
    ),
    "full": (
        put(0, "budgets", 0, "layouts", 0, "tokens_full"),
        r"tokens_full: expected 1 to \d+, got 0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_contradiction_is_one_line(place: Path, content: Content, damage: str) -> None:
    change, message = DAMAGES[damage]
    changed = copy.deepcopy(content)
    change(changed)
    write(place, changed)
    with pytest.raises(LvlmError, match=message) as caught:
        Bundle.open(place)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.endswith("; copy the bundle again or build it again")
    assert line.isprintable()


def test_every_rule_is_needed(content: Content, place: Path) -> None:
    """Each refuses a damage that no rule before it does."""
    needed = set()
    for change, _ in DAMAGES.values():
        changed = copy.deepcopy(content)
        change(changed)
        write(place, changed)
        manifest = read_manifest(place)
        needed.add(next(rule for rule in RULES if list(rule(manifest))))
    assert needed == set(RULES)


def test_what_was_built_holds_all_rules(demo_bundle: Path, tiny_llava: Path) -> None:
    for bundle in (demo_bundle, tiny_llava / "bundle"):
        check_manifest(read_manifest(bundle), bundle / MANIFEST)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "../x", "weights.bin", "decoder@1", "vision.0.onnx", "\0", HASH]),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything in nested lists and tables."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    return [each for key in keys for each in ((*way, key), *places(value[key], (*way, key)))]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_manifest_is_a_bundle_or_one_line(
    place: Path, content: Content, data: st.DataObject
) -> None:
    changed = copy.deepcopy(content)
    # One tensor is as good as another: the few entries that are not are met often enough.
    changed["weights"] = dict(list(changed["weights"].items())[:2])
    for _ in range(data.draw(st.integers(1, 3))):
        ways = places(changed)
        way = data.draw(st.sampled_from(ways))
        *parents, last = way
        at: Any = changed
        for step in parents:
            at = at[step]
        kind = data.draw(st.sampled_from(["value", "value", "drop", "nudge", "rename"]))
        if kind == "drop":
            del at[last]
        elif kind == "rename" and isinstance(at, dict):
            at[data.draw(st.text(max_size=8))] = at.pop(last)
        elif kind == "nudge" and isinstance(at[last], int | float):
            at[last] += data.draw(st.sampled_from([-1, 1, 1 << 33, -(1 << 33)]))
        else:
            at[last] = data.draw(VALUES)
    write(place, changed)
    line = ""
    try:
        Bundle.open(place)
    except LvlmError as error:
        line = str(error)
    assert len(line.splitlines()) <= 1
