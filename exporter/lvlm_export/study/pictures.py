"""Which patches of a picture stay at each site of a chain, as numbers, a PNG and an HTML page."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lvlm_runtime.bundle.manifest import Reduction

STAYS, LEAVES_HERE, LEFT_BEFORE = 0, 1, 2
# Tints over a patch that leaves at a site, and over one that left before.
MERGED, DROPPED, BEFORE = (255, 140, 0), (215, 25, 30), (30, 30, 34)
PANEL, MARGIN, CAPTION = 448, 16, 54
HATCH = 9  # pixels from one stroke to the next
KEY = 18  # edge of a legend's square
FONT_SIZE = 17
TOOL = "lvlm-export visualize"
# What a file of each kind says of who wrote it, so that no other is replaced.
MARKS = {
    ".png": f"tEXtSoftware\0{TOOL}".encode(),
    ".html": f'<meta name="generator" content="{TOOL}">'.encode(),
}


@dataclass(frozen=True)
class Panel:
    """One site.

    Attributes:
        title: The site's name.
        states: ``[N]`` of STAYS, LEAVES_HERE and LEFT_BEFORE.
        extra: Tokens that stand for no single patch, a CLS token or a sum.
        merges: What leaves is merged; otherwise it is dropped.
    """

    title: str
    states: NDArray[np.int64]
    extra: int
    merges: bool

    @property
    def caption(self) -> str:
        """What the panel shows, in one line."""
        kept, left = (int((self.states == state).sum()) for state in (STAYS, LEAVES_HERE))
        extra = f" and {self.extra} of no single patch" if self.extra else ""
        return f"{kept} patches stay{extra}, {left} are {'merged' if self.merges else 'dropped'}"


def make_panels(
    patches: int, reductions: Sequence[Reduction], places: Mapping[str, NDArray[np.int64]]
) -> list[Panel]:
    """The sites in the order tokens pass them.

    Args:
        patches: N, before the first.
        reductions: What a budget does at its sites.
        places: By site, the places ``[K]`` among the tokens before it; none where nothing stays.
    """
    current = np.arange(patches)
    result = []
    for reduction in reductions:
        before = current
        kept = places.get(reduction.site, np.zeros(0, np.int64))
        assert len(kept) == reduction.tokens_out, f"{reduction.site} keeps {len(kept)} places"
        current = np.where(kept >= 0, before[np.maximum(kept, 0)], -1)
        states = np.full(patches, LEFT_BEFORE)
        states[before[before >= 0]] = LEAVES_HERE
        states[current[current >= 0]] = STAYS
        result.append(Panel(reduction.site, states, int((current < 0).sum()), reduction.merges))
    return result


def draw_panel(picture: Image.Image, panel: Panel) -> Image.Image:
    """The picture: clear where a patch stays, tinted where it leaves, dark where it left before."""
    side = math.isqrt(len(panel.states))
    canvas = np.asarray(picture.convert("RGB").resize((PANEL, PANEL), Image.Resampling.LANCZOS))
    canvas = canvas.astype(np.float32)
    edges = np.linspace(0, PANEL, side + 1).round().astype(int)
    tint = np.array(MERGED if panel.merges else DROPPED, np.float32)
    # An orange picture has orange patches of its own; hatching shows which are tinted.
    hatched = np.add.outer(np.arange(PANEL), np.arange(PANEL)) % HATCH < 2
    for index, state in enumerate(panel.states.tolist()):
        row, col = divmod(index, side)
        area = slice(edges[row], edges[row + 1]), slice(edges[col], edges[col + 1])
        cell = canvas[area]
        if state == LEAVES_HERE:
            cell[:] = 0.35 * cell + 0.65 * tint
            cell[hatched[area]] *= 0.55
        elif state == LEFT_BEFORE:
            cell[:] = 0.15 * cell + 0.85 * np.array(BEFORE, np.float32)
        # A line between patches, so that single ones can be distinguished.
        cell[0] *= 0.8
        cell[:, 0] *= 0.8
    return Image.fromarray(canvas.round().astype(np.uint8))


def draw_sheet(picture: Image.Image, sites: Sequence[Panel], heading: str) -> Image.Image:
    """All sites side by side, with captions and a legend."""
    columns = min(3, len(sites) + 1)
    rows = math.ceil((len(sites) + 1) / columns)
    width = columns * (PANEL + MARGIN) + MARGIN
    height = rows * (PANEL + CAPTION + MARGIN) + 2 * CAPTION
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    pen.text((MARGIN, MARGIN), heading, fill="black", font=font)
    cells = [("what the model sees", f"{len(sites[0].states)} patches", None)]
    cells += [(panel.title, panel.caption, panel) for panel in sites]  # type: ignore[misc]
    for index, (title, caption, panel) in enumerate(cells):
        row, col = divmod(index, columns)
        left = MARGIN + col * (PANEL + MARGIN)
        top = CAPTION + row * (PANEL + CAPTION + MARGIN)
        shown = picture.resize((PANEL, PANEL)) if panel is None else draw_panel(picture, panel)
        sheet.paste(shown, (left, top))
        pen.text((left, top + PANEL + 4), title, fill="black", font=font)
        pen.text((left, top + PANEL + 26), caption, fill=(90, 90, 90), font=font)
    _legend(pen, font, height - CAPTION + MARGIN // 2, {panel.merges for panel in sites})
    return sheet


def _legend(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    top: int,
    merges: set[bool],
) -> None:
    entries = [("merged here", MERGED)] * (True in merges) + [("dropped here", DROPPED)] * (
        False in merges
    )
    left = MARGIN
    for text, colour in [("stays", None), *entries, ("left before", BEFORE)]:
        pen.rectangle((left, top, left + KEY, top + KEY), fill=colour, outline=(90, 90, 90))
        if colour in (MERGED, DROPPED):
            for at in (HATCH, 2 * HATCH, 3 * HATCH):
                near, far = max(0, at - KEY), min(at, KEY)
                ends = (left + near, top + far, left + far, top + near)
                pen.line(ends, fill=tuple(int(0.55 * c) for c in colour), width=2)
        pen.text((left + 26, top - 1), text, fill="black", font=font)
        left += 26 + 14 + 9 * len(text) + MARGIN


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">{mark}<title>{heading}</title>
<style>
body {{ font: 16px system-ui, sans-serif; margin: 2rem; color: #1b1b1f; background: #fff; }}
figure {{ margin: 0; }} figure img {{ width: min(80vmin, 720px); image-rendering: auto; }}
input {{ width: min(80vmin, 720px); display: block; margin: 1rem 0; }}
.key {{ display: inline-block; width: 1em; height: 1em; margin: 0 .4em 0 1em;
  vertical-align: -.1em; border: 1px solid #666; }}
.goes {{ background-image: repeating-linear-gradient(135deg, #0007 0 2px, #0000 2px 6px); }}
</style></head><body>
<h1>{heading}</h1>
<figure><img id="picture" alt="" src="{first}"><figcaption id="caption"></figcaption></figure>
<label for="site">Site</label>
<input id="site" type="range" min="0" max="{last}" value="0" step="1">
<p>{legend}</p>
<script>
const steps = {steps};
const show = (index) => {{
  picture.src = steps[index].image;
  picture.alt = caption.textContent = steps[index].title + ": " + steps[index].caption;
}};
site.addEventListener("input", () => show(Number(site.value)));
show(0);
</script></body></html>
"""


def save_sheet(sheet: Image.Image, stream: IO[bytes]) -> None:
    """Write a sheet as PNG."""
    info = PngInfo()
    info.add_text("Software", TOOL)
    sheet.save(stream, "PNG", pnginfo=info)


def draw_page(picture: Image.Image, sites: Sequence[Panel], heading: str) -> str:
    """One self-contained HTML page with a slider through the sites."""
    import json

    whole = (
        "what the model sees",
        f"{len(sites[0].states)} patches",
        picture.resize((PANEL, PANEL)),
    )
    shown = [(panel.title, panel.caption, draw_panel(picture, panel)) for panel in sites]
    steps = [
        {"title": title, "caption": caption, "image": _data_url(image)}
        for title, caption, image in (whole, *shown)
    ]
    merges = {panel.merges for panel in sites}
    keys = [("merged here", MERGED)] * (True in merges) + [("dropped here", DROPPED)] * (
        False in merges
    )
    legend = "".join(
        f'<span class="key{" goes" if colour != BEFORE else ""}"'
        f' style="background-color: rgb{colour}"></span>{text}'
        for text, colour in [*keys, ("left before", BEFORE)]
    )
    return PAGE.format(
        mark=MARKS[".html"].decode(),
        heading=html.escape(heading),
        first=steps[0]["image"],
        last=len(steps) - 1,
        legend=legend,
        steps=json.dumps(steps).replace("<", "\\u003c"),
    )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
