"""What the cost model needs to know of a model and of a request: integers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionDims:
    """A vision tower as far as it runs.

    Attributes:
        layers: Layers that run.
        width: Hidden size.
        mlp: Inner size of a layer's MLP (two linear maps, not gated).
        heads: Attention heads.
        patch: Edge of a patch in pixels.
        tokens: Patch tokens per tile.
        prefix: Leading tokens that are not patches (1 for CLS).
        channels: Of a picture, times the frames that a patch takes.
        window: Patches of a window that attention stays inside of; 0 for none.
        whole_layers: Layers whose attention has no window.
        planes: Layers that ran before each set of features for the decoder's first layers, each
            through maps like the projector's (DeepStack).
    """

    layers: int
    width: int
    mlp: int
    heads: int
    patch: int
    tokens: int
    prefix: int
    channels: int = 3
    window: int = 0
    whole_layers: tuple[int, ...] = ()
    planes: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextDims:
    """A language model.

    Attributes:
        layers: Decoder layers.
        width: Hidden size.
        mlp: Inner size of a layer's MLP.
        gated: The MLP has three linear maps (SwiGLU) and not two.
        heads: Query heads.
        kv_heads: Key and value heads; fewer than ``heads`` is grouped-query attention.
        head_dim: Of one head.
        vocab: Rows of the token table.
        tied: The output projection is the token table.
    """

    layers: int
    width: int
    mlp: int
    gated: bool
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool


@dataclass(frozen=True)
class ModelDims:
    """A vision-language model.

    Attributes:
        vision: Its tower.
        projector: ``(in, out)`` of each linear map that the projector applies to every patch;
            of a trained one those over its few tokens are left out.
        text: Its language model.
    """

    vision: VisionDims
    projector: tuple[tuple[int, int], ...]
    text: TextDims


@dataclass(frozen=True)
class Cut:
    """A place where the chain is cut; tokens stay where a budget passes it by.

    Attributes:
        stage: ``pixels`` (before the tower, on the picture), ``vision`` (between a layer's
            attention and MLP), ``features`` (after the last vision layer), ``projected`` (before
            the decoder) or ``decoder`` (at a layer's input).
        layer: 0-based layer.
        tokens_in: Visual tokens before it: per tile (up to the projector) or per image.
        tokens_out: Visual tokens after it.
    """

    stage: str
    layer: int
    tokens_in: int
    tokens_out: int

    @property
    def name(self) -> str:
        """As the chain names the site, ``vision@5``."""
        return f"{self.stage}@{self.layer}"

    @property
    def reduces(self) -> bool:
        """A reducer runs here."""
        return self.tokens_in != self.tokens_out


@dataclass(frozen=True)
class TokenPath:
    """Tokens of one request at every place of the chain.

    Attributes:
        method: What reduces, a method's name.
        images: Pictures.
        tiles: Tiles of all pictures.
        text_tokens: Text of the prompt.
        answer_tokens: Answer, its first token included.
        image_tokens: Tokens per picture after projector and packer, before a ``projected`` cut.
        packed: A packer makes an image's tokens of its tiles' tokens.
        cuts: All cuts of the chain, in the order tokens pass them.
        condensed: A trained projector, a graph of its own, makes ``image_tokens`` of the patches.
        query_tokens: Question that passes the decoder alone before, for a projector that reads it.
        sized: The decoder's attention adds a row of the tokens' sizes to its scores.
        in_order: Its packer puts tiles one behind the other, and tokens keep their places.
        group: Patches that are one token up to the projector, whose maps each token goes through.
    """

    method: str
    images: int
    tiles: int
    text_tokens: int
    answer_tokens: int
    image_tokens: int
    packed: bool
    cuts: tuple[Cut, ...]
    condensed: bool = False
    query_tokens: int = 0
    sized: bool = False
    group: int = 1
    in_order: bool = False

    def at(self, *stages: str) -> tuple[Cut, ...]:
        """The cuts of some stages."""
        return tuple(cut for cut in self.cuts if cut.stage in stages)

    def tower_tokens(self, full: int) -> int:
        """Patches of a tile in the first vision layer, of ``full`` at its own size."""
        tokens = next((cut.tokens_out for cut in self.at("pixels")), full // self.group)
        return tokens * self.group

    def prompt_tokens(self, layer: int) -> int:
        """Tokens of the prompt in a decoder layer, text and visual together."""
        visual = self.image_tokens
        for cut in self.at("projected"):
            visual = cut.tokens_out
        for cut in self.at("decoder"):
            if cut.layer <= layer:
                visual = cut.tokens_out
        return self.text_tokens + self.images * visual
