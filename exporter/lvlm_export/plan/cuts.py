"""Where a model is cut at a method's sites: integers, no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lvlm_export.reduction.method import Site
from lvlm_runtime.bundle.manifest import PLANE, SEEN_FROM, SEEN_TO, SIZE_BIAS


@dataclass(frozen=True)
class VisionCut:
    """Half-open range of a vision subgraph.

    Attributes:
        index: Position in the chain.
        mlp_of: Layer whose MLP the subgraph starts with; None where it starts with a whole layer,
            the embedding (the first) or the projector.
        whole: Layers that are whole in it, ``(first, last)``.
        site: The site that follows; None for the last, which ends with the projector.
        sized: Its attention counts the patches that a token stands for.
        any_size: It takes pictures of any size.
        rows: What its attention takes for every token.
        planes: Numbers of the planes whose layers are whole behind it.
    """

    index: int
    mlp_of: int | None
    whole: tuple[int, int]
    site: Site | None
    sized: bool = False
    any_size: bool = False
    rows: tuple[str, ...] = ()
    planes: tuple[int, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        main = ("features",) if self.site is None else ("hidden_out", "query", "key")
        return (*main, *(f"{PLANE}{number}" for number in self.planes))

    @property
    def name(self) -> str:
        return f"vision.{self.index}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it takes."""
        if self.index == 0:
            return ("pixel_values", *self.rows)
        return ("hidden", *(("sizes",) if self.sized else ()), *self.rows)

    @property
    def attention_of(self) -> int | None:
        """Layer whose attention it ends with; None where it ends with a whole layer."""
        inside = self.site is not None and self.site.stage == "vision"
        return self.site.layer if self.site is not None and inside else None


@dataclass(frozen=True)
class DecoderCut:
    """Layers ``[first, last)`` of a decoder subgraph.

    Attributes:
        index: Position in the chain.
        first: Its first layer.
        last: One past its last.
        scored: A site follows.
        sized: Its attention counts the patches that a token stands for.
        bounded: A row says how many rows it sees, as it is not all before it.
        windowed: Its layers whose attention has a window.
        planes: Its layers that add features of an earlier vision layer.
    """

    index: int
    first: int
    last: int
    scored: bool
    sized: bool = False
    planes: tuple[int, ...] = ()
    bounded: bool = False
    windowed: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"decoder.{self.index}"

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of what its masks are made of."""
        sizes, to = (SIZE_BIAS,) * self.sized, (SEEN_TO,) * self.bounded
        return sizes + to + (SEEN_FROM,) * bool(self.windowed)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it takes beside tokens, positions and caches."""
        planes = tuple(f"{PLANE}{layer}" for layer in self.planes)
        return *planes, *self.rows


def cut_vision(
    layers: int,
    sites: Sequence[Site],
    tracks_size: bool = False,
    rows: tuple[str, ...] = (),
    planes: tuple[int, ...] = (),
) -> tuple[VisionCut, ...]:
    """Cuts of a tower of ``layers`` blocks at the sites before its projector, in order.

    ``tracks_size``: attention after a site counts the patches that a token stands for; ``rows``:
    what it takes for every token; ``planes``: layers that ran before each of the planes.
    """
    cuts: list[VisionCut] = []
    start: int | None = None
    first = 0
    for site in sites:
        if site.stage == "vision":
            cuts.append(VisionCut(len(cuts), start, (first, site.layer), site))
            start, first = site.layer, site.layer + 1
        elif site.stage == "features":
            assert first < layers, "the last layer must be whole, its attention scores the features"
            cuts.append(VisionCut(len(cuts), start, (first, layers), site))
            start, first = None, layers
    cuts.append(VisionCut(len(cuts), start, (first, layers), None))
    if any(site.stage == "pixels" for site in sites):
        cuts[0] = replace(cuts[0], any_size=True)
    if tracks_size:
        cuts[1:] = [replace(cut, sized=_attends(cut)) for cut in cuts[1:]]
    cuts = [replace(cut, planes=_given(cut, planes)) for cut in cuts]
    return tuple(replace(cut, rows=rows) if _attends(cut) else cut for cut in cuts)


def _given(cut: VisionCut, planes: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of the planes of layers that end in a cut."""
    first = cut.whole[0] if cut.mlp_of is None else cut.mlp_of
    return tuple(n for n, ran in enumerate(planes) if first < ran <= cut.whole[1])


def _attends(cut: VisionCut) -> bool:
    return cut.whole[0] < cut.whole[1] or cut.attention_of is not None


def cut_decoder(
    layers: int,
    sites: Sequence[Site],
    sizes_in_decoder: bool = False,
    planes: int = 0,
    bounded: bool = False,
    windowed: tuple[int, ...] = (),
) -> tuple[DecoderCut, ...]:
    """Cuts of a decoder of ``layers`` layers at the inputs of the sites' layers.

    ``sizes_in_decoder``: its attention counts the patches that a token stands for, which are more
    than one behind a site in the tower; ``planes``: first layers that add a plane each;
    ``bounded`` and ``windowed``: as ``DecoderCut`` has them, of all layers.
    """
    sized = sizes_in_decoder and any(site.stage == "vision" for site in sites)
    at = [site.layer for site in sites if site.stage == "decoder"]
    bounds = [0, *at, layers]
    return tuple(
        DecoderCut(
            index,
            first,
            last,
            last != layers,
            sized,
            tuple(range(first, min(last, planes))),
            bounded,
            tuple(layer for layer in windowed if first <= layer < last),
        )
        for index, (first, last) in enumerate(itertools.pairwise(bounds))
    )
