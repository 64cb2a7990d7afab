"""What a method is: the protocol, the sites it acts at and the shape of its reducers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector


Stage = Literal["pixels", "vision", "features", "projected", "decoder"]


# In the order tokens pass them.
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, order=True)
class Site:
    """A place where tokens are reduced.

    Attributes:
        stage: ``"pixels"``: before the vision tower, on the picture itself;
            ``"vision"``: between the attention residual and the MLP of a vision layer;
            ``"features"``: after the last vision layer, before the projector;
            ``"projected"``: an image's tokens as they would enter the decoder;
            ``"decoder"``: at the input of a decoder layer.
        layer: 0-based layer index; for ``features`` the number of vision layers that ran, for
            ``pixels`` and ``projected`` 0.
    """

    stage: Stage
    layer: int

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.layer}"

    @property
    def per_tile(self) -> bool:
        """The site is before the projector, where tokens are counted per tile."""
        return self.stage in ("pixels", "vision", "features")


@dataclass(frozen=True)
class ReducerShape:
    """What a reducer graph is built for.

    Attributes:
        tokens_in: Visual tokens before the site (patches only, no CLS).
        tokens_out: Visual tokens after it, the constant K.
        prefix: Leading tokens that are never touched (1 for a CLS token), vision sites only.
        scale: Factor on query-key products (``head_dim ** -0.5`` unless the model has its own).
        seed: For methods that draw numbers; the same seed gives the same graph.
        whole: Patches of a tile before any reduction, 0 where they are ``tokens_in``; vision sites.
        group: Patches that are one token, because a merger joins them; vision sites.
        window: Edge, in tokens, of the windows inside of which attention of the layer that scores
            stays; 0 for none.
        rows: Rows that travel with the tokens, by name; vision sites.
        columns: Tokens in a row of the picture's grid, 0 where the grid is a square.
        causal: Text sees what stands before it; else the whole prompt. Decoder sites.
    """

    tokens_in: int
    tokens_out: int
    prefix: int
    scale: float
    seed: int
    whole: int = 0
    group: int = 1
    window: int = 0
    rows: tuple[str, ...] = ()
    columns: int = 0
    causal: bool = True

    @property
    def tokens_full(self) -> int:
        """Patches of a tile before any reduction."""
        return self.whole or self.tokens_in

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of a tile's patches before any reduction, None where they are no grid.

        Example:
            >>> ReducerShape(196, 65, 0, 1.0, 0).grid
            (14, 14)
            >>> ReducerShape(1196, 395, 0, 1.0, 0, columns=46).grid
            (26, 46)
        """
        side = math.isqrt(self.tokens_full)
        columns = self.columns or side
        rows = self.tokens_full // columns if self.columns else side
        return (rows, columns) if rows * columns == self.tokens_full else None


class Method(Protocol):
    """A way to reduce visual tokens at a fixed ratio.

    Attributes:
        name: Key in ``METHODS``, or two of them with a plus between.
        summary: One line for ``lvlm-export list methods``.
        paper: Source of the algorithm.
        cost: What a reducer computes, in one line.
        acts_in: Where it acts, for people.
        needs_cls: It cannot work without a CLS token in the vision tower.
        appends: It adds a token that is no patch, which has no place in a grid of tiles.
        needs_rank: Every token it keeps must add a direction to those before. There are only as
            many directions as the model is wide; past them rounding would decide.
        merges: What leaves is merged into what stays; else it is dropped.
        withdraws: Every visual token leaves at its site, whose layer depends on the ratio.
        tracks_size: The number of patches that a token stands for is kept through the vision
            encoder, whose attention adds its logarithm to a key's logits.
        sizes_in_decoder: The decoder's attention does so too, in every layer and step.
        keeps_square: What stays of a tile is a square grid, on every model.
        vision_share: Share of the total log-ratio that the sites before the decoder carry, in
            [0, 1]; counts only where there are sites in both.
    """

    name: str
    summary: str
    paper: str
    cost: str
    acts_in: str
    needs_cls: bool = False
    appends: bool = False
    needs_rank: bool = False
    merges: bool = False
    withdraws: bool = False
    tracks_size: bool = False
    sizes_in_decoder: bool = False
    keeps_square: bool = False
    vision_share: float = 0.0

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        """Sites for a model of these depths, in the order tokens pass them."""
        ...

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        """The graph of the method for one site: tokens and scores in, K tokens out."""
        ...

    def log_shares(self, ratio: float, sites: int) -> tuple[float, ...]:
        """Part of the decoder's log-ratio that is reached at each of its sites; the last is 1."""
        return tuple(index / sites for index in range(1, sites + 1))

    def vision_counts(self, tokens: int, kept: int, sites: int) -> tuple[int, ...] | None:
        """Tokens of a tile after each site up to the projector; None for equal removals."""
        return None

    def least_of_tile(self, tokens: int) -> int:
        """Fewest of a tile's tokens that can stay before the decoder, which then takes the rest."""
        return 1

    def merges_at(self, site: Site) -> bool:
        """Whether what leaves at a site is merged into what stays."""
        return self.merges

    def by_hand(self, ratio: float) -> Mapping[Site, float] | None:
        """What stays at every site of a ratio that a user counted out; None for the schedule's.

        A count from 1 up, or below 1 a share of the tokens that enter the site.
        """
        return None
