"""Token-reduction methods: the protocol and the table.

A method is one file here and one line in ``METHODS``. The method object is plain Python (its
sites and shares are ints and floats, no torch); only its ``selector`` factory builds a
``torch.nn.Module``, and it imports torch when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lvlm_export.reduction.method import Method
from lvlm_profiles.registry import resolve

if TYPE_CHECKING:
    from lvlm_runtime.bundle.placement import HandPlacement


# Of the methods whose first token at a third of the tokens costs at most 0.6, what was measured on the
# demo loses least by it (the README's table, ``make demo-table``).
DEFAULT_METHOD = "local"

METHODS: dict[str, str] = {
    "anchors": "lvlm_export.reduction.methods.anchors:METHOD",
    "cdpruner": "lvlm_export.reduction.methods.cdpruner:METHOD",
    "checkerboard": "lvlm_export.reduction.methods.checkerboard:METHOD",
    "dart": "lvlm_export.reduction.methods.dart:METHOD",
    "divprune": "lvlm_export.reduction.methods.divprune:METHOD",
    "downsample": "lvlm_export.reduction.methods.downsample:METHOD",
    "fastv": "lvlm_export.reduction.methods.fastv:METHOD",
    "illava": "lvlm_export.reduction.methods.illava:METHOD",
    "illava_v1": "lvlm_export.reduction.methods.illava_v1:METHOD",
    "image_text": "lvlm_export.reduction.methods.image_text:METHOD",
    "local": "lvlm_export.reduction.methods.local:METHOD",
    "none": "lvlm_export.reduction.methods.none:METHOD",
    "prumerge": "lvlm_export.reduction.methods.prumerge:METHOD",
    "prumerge_plus": "lvlm_export.reduction.methods.prumerge_plus:METHOD",
    "pyramiddrop": "lvlm_export.reduction.methods.pyramiddrop:METHOD",
    "random": "lvlm_export.reduction.methods.random:METHOD",
    "sparsevlm": "lvlm_export.reduction.methods.sparsevlm:METHOD",
    "tome": "lvlm_export.reduction.methods.tome:METHOD",
    "uniform": "lvlm_export.reduction.methods.uniform:METHOD",
    "visionzip": "lvlm_export.reduction.methods.visionzip:METHOD",
    "visprune": "lvlm_export.reduction.methods.visprune:METHOD",
    "vtw": "lvlm_export.reduction.methods.vtw:METHOD",
}


def load_method(name: str, placement: HandPlacement | None = None) -> Method:
    """The method of a name, ``fastv`` or ``visionzip+fastv``, at the sites a user gave if any.

    Raises:
        UsageError: There is none, or its parts or sites cannot be combined.

    Example:
        >>> load_method("fastv").sites(vision_layers=24, text_layers=32, ratio=0.5)
        (Site(stage='decoder', layer=2),)
        >>> load_method("visionzip+fastv").name
        'visionzip+fastv'
    """
    if "+" not in name and placement is None:
        return method_entry(name)
    from lvlm_export.reduction.compose import compose, placed_by_hand

    method = compose(name) if "+" in name else method_entry(name)
    return method if placement is None else placed_by_hand(method, placement)


def method_entry(name: str) -> Method:
    """The method registered under ``name``; UsageError lists the known ones where there is none."""
    return cast("Method", resolve(METHODS, name, "method"))
