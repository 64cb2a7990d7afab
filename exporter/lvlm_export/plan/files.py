"""Names of a bundle's graph files."""

from __future__ import annotations

from lvlm_export.reduction.budget import SiteCount


def lm_head_files(splits: int) -> tuple[str, ...]:
    """Files of the LM head, in the order of the vocabulary."""
    return ("lm_head.onnx",) if splits == 1 else tuple(f"lm_head.{i}.onnx" for i in range(splits))


PROJECTOR_FILE = "projector.onnx"


def packer_file(layout: str, kept: int) -> str:
    """File of a packer."""
    return f"pack.{layout}.{kept}.onnx"


def reducer_file(count: SiteCount) -> str:
    """File of a reducer; equal counts at a site share one, over all budgets and layouts."""
    return f"reduce.{count.site.name}.{count.tokens_in}-{count.tokens_out}.onnx"
