"""What a reducer costs, by method: the products it computes and the rows it moves.

Products of a few elements, TopK and the order of indices are left out. A method that is not in the
table counts as the gather that every reducer does, and ``is_known`` is false for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lvlm_profiles.cost.units import Amount, moved_only
from lvlm_profiles.shapes.dims import Cut, ModelDims

# Sources of the constants below: the methods' own files in ``lvlm_export.reduction``, which a test
# compares with PyTorch's count.
DART_PIVOTS = 8
VISIONZIP_DOMINANT = 54 / 64
SPARSEVLM_RECYCLED, SPARSEVLM_CLUSTERS = 0.3, 0.1
ILLAVA_RECYCLING, ILLAVA_TAKEN = 0.05, 5


@dataclass(frozen=True)
class Place:
    """A site as a reducer sees it.

    Attributes:
        batch: Tiles or images, each reduced on its own.
        tokens: Visual tokens of one before.
        kept: Visual tokens of one after.
        prefix: Tokens of one that are no patches.
        rows: All rows that pass, text and prefix included.
        text: Text rows among them.
        width: Elements of a row.
        inner: Elements of a query over all heads.
        heads: Query heads.
    """

    batch: int
    tokens: int
    kept: int
    prefix: int
    rows: int
    text: int
    width: int
    inner: int
    heads: int

    def products(self, rows: int, columns: int, depth: int) -> Amount:
        """A matrix of products for each of the batch, written and read once."""
        pairs = self.batch * rows * columns
        return Amount(2 * pairs * depth, activations=2 * pairs)


Step = Callable[[Place], Amount]


def all_pairs(at: Place) -> Amount:
    """Attention of every token to every token, written out, softmaxed and averaged."""
    count = at.tokens + at.prefix
    pairs = at.batch * count**2
    return Amount(2 * pairs * at.inner, activations=4 * pairs * at.heads)


def one_row(at: Place) -> Amount:
    """One query's attention to every row."""
    return Amount(2 * at.rows * at.inner, activations=at.rows * at.inner)


def salience(at: Place) -> Amount:
    """The CLS token's attention row, or all pairs where there is none."""
    return one_row(at) if at.prefix else all_pairs(at)


def recycle(at: Place) -> Amount:
    """Products of the weakest that stay with all that leave, and the weighted means of a few."""
    removed = at.tokens - at.kept
    taking = max(1, round(at.kept * ILLAVA_RECYCLING))
    return at.products(taking, removed + min(ILLAVA_TAKEN, removed), at.width)


def merge_one(at: Place) -> Amount:
    """The weighted mean of what leaves and one more."""
    return at.products(1, at.tokens - at.kept + 1, at.width)


def cls_cosines(at: Place) -> Amount:
    """Cosines of the CLS token with every token."""
    return at.products(1, at.tokens, at.width)


def cosines(at: Place) -> Amount:
    """Cosines of every token with every token."""
    return at.products(at.tokens, at.tokens, at.width)


def text_cosines(at: Place) -> Amount:
    """Cosines of every token with the prompt's text."""
    return at.products(at.tokens, at.text, at.width)


def pivot_cosines(at: Place) -> Amount:
    """DART: cosines of a few pivots with every token."""
    return at.products(DART_PIVOTS, at.tokens, at.width)


def prumerge(at: Place) -> Amount:
    """Cosines of the kept tokens, their neighbours' weighted sums, and the sum of the rest."""
    return at.products(2 * (at.kept - 1) + 1, at.tokens, at.width)


def visionzip(at: Place) -> Amount:
    """Cosines of the rest with the contextual targets, by a head's mean key, and their sums."""
    dominant = max(1, round(at.kept * VISIONZIP_DOMINANT))
    targets = at.kept - dominant
    rest = at.tokens - (dominant - at.prefix) - targets
    return at.products(rest, targets, at.inner // at.heads + at.width)


def tome(at: Place) -> Amount:
    """Cosines of two halves by a head's mean key, and the weighted means."""
    half = at.tokens // 2
    cosines_of_halves = at.products(at.tokens - half, half, at.inner // at.heads)
    return cosines_of_halves + at.products(at.tokens - at.kept, half, at.width + 1)


def local(at: Place) -> Amount:
    """Cosines of two halves by whole keys, and the weighted means."""
    half = at.tokens // 2
    cosines_of_halves = at.products(at.tokens - half, half, at.inner)
    return cosines_of_halves + at.products(at.tokens - at.kept, half, at.width + 1)


def anchors(at: Place) -> Amount:
    """Cosines of all tokens with the kept ones, and the weighted means."""
    return at.products(at.tokens, at.kept, at.inner + at.width + 1)


def checkerboard(at: Place) -> Amount:
    """Cosines of what leaves with the other colour, and the means."""
    return at.products(at.tokens - at.kept, at.tokens // 2, at.inner + at.width)


def farthest(at: Place) -> Amount:
    """DivPrune: K steps over the distances of the tokens."""
    return moved_only(3 * at.batch * at.kept * at.tokens)


def cholesky(at: Place) -> Amount:
    """CDPruner: K steps, each over the rows of the factor so far."""
    pairs = at.batch * at.kept**2 * at.tokens
    return Amount(pairs, activations=pairs // 2)


def without_twins(at: Place) -> Amount:
    """VisPruner's steps from N - K/2 tokens to K/2, 8 fewer each, over a quarter of the pairs."""
    half = at.kept // 2
    return moved_only(at.batch * ((at.tokens - half) ** 3 - half**3) // 96)


def sparsevlm(at: Place) -> Amount:
    """The text's attention rows, its products with the picture, and clusters of some others."""
    rows = Amount(2 * at.text * at.rows * at.inner, activations=4 * at.text * at.rows * at.heads)
    # K are those kept and the clusters; clusters are a tenth of the candidates, 3 of 10 that leave.
    recycled = round(SPARSEVLM_RECYCLED * (at.tokens - at.kept)) + 1
    clusters = round(SPARSEVLM_CLUSTERS * recycled) + 1
    ratings = rows + at.products(at.tokens, at.text, at.width + 1)
    return ratings + at.products(recycled + clusters, recycled, at.width)


# Method -> stage of a cut -> what is computed there beside the gather.
REDUCERS: Mapping[str, Mapping[str, tuple[Step, ...]]] = {
    "anchors": {"vision": (anchors,)},
    "cdpruner": {"projected": (text_cosines, cosines, cholesky)},
    "checkerboard": {"vision": (checkerboard,), "decoder": (one_row,)},
    "dart": {"decoder": (pivot_cosines,)},
    "divprune": {"projected": (cosines, farthest)},
    "fastv": {"decoder": (one_row,)},
    "illava": {"vision": (all_pairs, recycle), "decoder": (one_row, recycle)},
    "illava_v1": {"vision": (all_pairs, merge_one), "decoder": (one_row, merge_one)},
    "image_text": {"features": (cls_cosines,), "decoder": (one_row,)},
    "local": {"vision": (local,)},
    "prumerge": {"features": (salience, prumerge)},
    "prumerge_plus": {"features": (salience, prumerge)},
    "pyramiddrop": {"decoder": (one_row,)},
    "random": {"vision": (), "decoder": ()},
    "sparsevlm": {"decoder": (sparsevlm,)},
    "tome": {"vision": (tome,)},
    "uniform": {"vision": (), "decoder": ()},
    "visionzip": {"features": (salience, visionzip)},
    "visprune": {"features": (salience, cosines, without_twins)},
    "vtw": {"decoder": ()},
}
# Nothing to compute, or counted where the picture is resized.
ELSEWHERE = ("none", "downsample")


def is_known(method: str) -> bool:
    """Whether the cost of all parts of ``a+b`` is known; ``none`` has no reducer."""
    return all(part in (*REDUCERS, *ELSEWHERE) for part in method.split("+"))


def reducer_amount(
    method: str, cut: Cut, dims: ModelDims, batch: int, rows: int, text: int = 0
) -> Amount:
    """What the reducer at a cut costs.

    Args:
        method: Its name, or several joined by ``+``.
        cut: The cut.
        dims: The model.
        batch: Tiles or images.
        rows: All rows that enter.
        text: Text rows of the prompt.
    """
    place = _place(cut, dims, batch, rows, text)
    amount = moved_only((2 * rows - batch * (cut.tokens_in - cut.tokens_out)) * place.width)
    for part in method.split("+"):
        for step in REDUCERS.get(part, {}).get(cut.stage, ()):
            amount += step(place)
    return amount


def _place(cut: Cut, dims: ModelDims, batch: int, rows: int, text: int) -> Place:
    vision, words = dims.vision, dims.text
    if cut.stage in ("vision", "features"):
        sizes = (vision.width, vision.width, vision.heads)
        return Place(batch, cut.tokens_in, cut.tokens_out, vision.prefix, rows, text, *sizes)
    sizes = (words.width, words.heads * words.head_dim, words.heads)
    return Place(batch, cut.tokens_in, cut.tokens_out, 0, rows, text, *sizes)
