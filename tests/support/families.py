"""Tiny checkpoints of every family, and the comparison that each must pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import tiny
from helpers import build_tiny, made_once, tiny_options
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.check.parity_report import ParityReport
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import make_plan
from lvlm_runtime.bundle.placement import HandPlacement
from lvlm_runtime.session import Session

RATIOS = (0.5, 0.33)


@dataclass(frozen=True)
class Case:
    """A checkpoint to write and how to build it."""

    name: str
    checkpoint: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        kind = self.name.partition("-")[0]
        make = tiny.qwen_vl if kind.startswith("qwen") else getattr(tiny, kind)
        path: Path = make(directory / self.name, **self.checkpoint)
        return path


CASES = [
    Case("llava-clip-llama"),
    Case(
        "llava-siglip-qwen2-bf16-shards",
        {"tower": "siglip", "text": "qwen2", "dtype": torch.bfloat16, "max_shard_size": "100KB"},
        {"method": "random"},
    ),
    Case("llava-clip-mistral-tied", {"text": "mistral", "tied": True}),
    # Not ascending: the projector was trained with this order.
    Case("llava-clip-three-layers", {"feature_layer": [-2, 1, 3]}, {"method": "fastv"}),
    # Two rows of three tiles behind a CLS token; an odd rest of padding is not cut off.
    Case("llava_next-2x3-tiles", {}, {"image_size": (77, 140)}),
    Case("onevision-2x3-tiles", {}, {"image_size": (100, 140)}),
    # 5 x 7 groups in windows of 2 x 2, some of them cut off; sites at layers with windows and without.
    Case("qwen2_5_vl", {}, {"image_size": (40, 56)}),
    Case("qwen2_vl", {"kind": "qwen2_vl"}, {"image_size": (40, 56), "method": "fastv"}),
    # Sites around the layers whose features decoder layers add (1 and 3), and among these (0 and 1).
    Case("qwen3_vl", {"kind": "qwen3_vl"}, {"image_size": (40, 56)}),
    # Planes of other lengths than their tokens, taken up behind sites in the decoder too.
    Case(
        "qwen3_vl-sites-by-hand",
        {"kind": "qwen3_vl"},
        {
            "image_size": (40, 56),
            "dialect": "decomposed",
            "placement": HandPlacement(("vision@1", "vision@3", "decoder@1", "decoder@2")),
        },
    ),
    Case("qwen3_vl-sized", {"kind": "qwen3_vl"}, {"image_size": (40, 56), "method": "local"}),
    # Two tiles and the whole picture; a merge in the tower behind a CLS token.
    Case("internvl-1x2-tiles", {}, {"image_size": (60, 140)}),
    # A mean of 4 x 4 patches, windows shorter than the prompt, and a site behind a layer with one.
    Case("gemma3-windows", {}),
    # A prompt that sees the whole of itself, kept in the decoder by what has read the question.
    Case("paligemma-gemma", {}),
    Case("onevision-shrunk", {"aspect": "anyres_max_1"}, {"image_size": (100, 140)}),
]


@dataclass(frozen=True)
class Built:
    """A case's checkpoint and its bundle at ``RATIOS`` and 1.0."""

    checkpoint: Path
    bundle: Path


def build_case(case: Case, directory: Path) -> Built:
    """Write the case's checkpoint and build it."""
    path = case.write(directory)
    return Built(path, build_tiny(path, directory / "bundle", *RATIOS, **case.options).directory)


def shared_case(name: str, shared: Path) -> Built:
    """One of ``CASES`` by name, built once for all tests; read only."""
    case = next(each for each in CASES if each.name == name)
    with made_once(shared / f"case-{name}") as part:
        if part is not None:
            build_case(case, part)
    return Built(shared / f"case-{name}" / name, shared / f"case-{name}" / "bundle")


def compare(case: Case, built: Built) -> ParityReport:
    """Compare a case's chain with PyTorch."""
    checkpoint = Checkpoint.open(built.checkpoint)
    plan = make_plan(checkpoint, tiny_options(*RATIOS, **case.options))
    session = Session.open(built.bundle, device="cpu")
    samples = synthetic_samples(plan.shape.layouts, 2, seed=5)
    return verify(session, checkpoint, plan, samples, 12, lambda _step: None)
