"""Token-reduction methods: the protocol and the table.

A method is one file here and one line in ``METHODS``. The method object is plain Python (its
sites and shares are ints and floats, no torch); only its ``selector`` factory builds a
``torch.nn.Module``, and it imports torch when called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

from lvlm_export.registry import resolve

if TYPE_CHECKING:
    from lvlm_export.reduction.tensors import Selector

METHODS: dict[str, str] = {
    "illava": "lvlm_export.reduction.illava:METHOD",
    "none": "lvlm_export.reduction.none:METHOD",
    "random": "lvlm_export.reduction.random:METHOD",
}


@dataclass(frozen=True, order=True)
class Site:
    """A place where tokens are reduced.

    Attributes:
        stage: ``"vision"``: between the attention residual and the MLP of a vision layer;
            ``"decoder"``: at the input of a decoder layer.
        layer: 0-based layer index.
    """

    stage: Literal["vision", "decoder"]
    layer: int

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.layer}"


@dataclass(frozen=True)
class ReducerShape:
    """What a reducer graph is built for.

    Attributes:
        tokens_in: Visual tokens before the site (patches only, no CLS).
        tokens_out: Visual tokens after it, the constant K.
        prefix: Leading tokens that are never touched (1 for a CLS token), vision sites only.
        scale: Factor on query-key products (``head_dim ** -0.5`` unless the model says else).
        seed: For methods that draw numbers; the same seed gives the same graph.
    """

    tokens_in: int
    tokens_out: int
    prefix: int
    scale: float
    seed: int


class Method(Protocol):
    """A way to reduce visual tokens at a fixed ratio.

    Attributes:
        name: Key in ``METHODS``.
        summary: One line for ``lvlm-export list methods``.
        paper: Source of the algorithm.
        vision_share: Share of the total log-ratio that the vision sites carry, in [0, 1].
    """

    name: str
    summary: str
    paper: str
    vision_share: float

    def sites(self, vision_layers: int, text_layers: int) -> tuple[Site, ...]:
        """Sites for a model of these depths, vision first, each stage in layer order."""
        ...

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        """The graph of the method for one site: tokens and scores in, K tokens out."""
        ...


def load_method(name: str) -> Method:
    """The method registered under ``name``; UsageError that lists the known ones if there is none."""
    return cast("Method", resolve(METHODS, name, "method"))
