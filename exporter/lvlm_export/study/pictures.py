"""What becomes of a picture's patches at each site: one panel, a sheet (PNG) and an animation (GIF)."""

from __future__ import annotations

import colorsys
import math
import textwrap
from collections.abc import Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lvlm_export.study.panels import CLEAR, DROPPING, GONE, GROUPED, MERGING, Panel
from lvlm_export.study.views import Seen, panel_of

Color = tuple[int, int, int]

# Tints over a patch that leaves at a site, and over one that left before.
MERGED, DROPPED, BEFORE = (255, 140, 0), (215, 25, 30), (30, 30, 34)
PANEL, MARGIN, CAPTION = 448, 16, 54
ACROSS = 4  # panels side by side
GAP = 8  # pixels between the views of a panel
HATCH = 9  # pixels from one stroke to the next
DOT = 4  # pixels of radius
KEY = 18  # edge of a legend's square
FONT_SIZE = 17
LETTER, LINE = 10, 22  # pixels of a wide letter, and from line to line
FRAME_MS, LAST_MS = 1200, 2400
TOOL = "lvlm-export visualize"
# What a file of each kind says of who wrote it, so that no other is replaced.
MARKS = {
    ".png": f"tEXtSoftware\0{TOOL}".encode(),
    ".html": f'<meta name="generator" content="{TOOL}">'.encode(),
    ".gif": TOOL.encode(),
}
# By look: text of the legend, colour, hatched.
LEGEND: dict[int, tuple[str, Color | None, bool]] = {
    CLEAR: ("stays as it is", None, False),
    GROUPED: ("merged: a colour per token, a dot at its place", (120, 90, 230), False),
    MERGING: ("merged here", MERGED, True),
    DROPPING: ("dropped here", DROPPED, True),
    GONE: ("left before", BEFORE, False),
}


def group_color(place: int, side: int) -> Color:
    """A token's colour, by its place in a grid; near ones are far apart on the wheel of hues."""
    row, column = divmod(place, side)
    red, green, blue = colorsys.hsv_to_rgb((0.618 * column + 0.273 * row) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_panel(picture: Image.Image, panel: Panel) -> Image.Image:
    """The picture: clear where a patch stays, in its token's colour where it is merged.

    Patches that leave are tinted and hatched, and dark where they left before.
    """
    side = panel.columns or math.isqrt(len(panel.looks))
    lines = len(panel.looks) // side
    width = round(PANEL * side / lines)
    canvas = np.asarray(picture.convert("RGB").resize((width, PANEL), Image.Resampling.LANCZOS))
    canvas = canvas.astype(np.float32)
    edges = np.linspace(0, width, side + 1).round().astype(int)
    heights = np.linspace(0, PANEL, lines + 1).round().astype(int)
    # An orange picture has orange patches of its own; hatching shows which are tinted.
    hatched = np.add.outer(np.arange(PANEL), np.arange(width)) % HATCH < 2
    for index, (look, group) in enumerate(
        zip(panel.looks.tolist(), panel.groups.tolist(), strict=True)
    ):
        row, col = divmod(index, side)
        area = slice(heights[row], heights[row + 1]), slice(edges[col], edges[col + 1])
        cell = canvas[area]
        if look == GROUPED:
            cell[:] = 0.45 * cell + 0.55 * np.array(group_color(group, side), np.float32)
        elif look in (MERGING, DROPPING):
            tint = MERGED if look == MERGING else DROPPED
            cell[:] = 0.35 * cell + 0.65 * np.array(tint, np.float32)
            cell[hatched[area]] *= 0.55
        elif look == GONE:
            cell[:] = 0.15 * cell + 0.85 * np.array(BEFORE, np.float32)
        # A line between patches, so that single ones can be distinguished; none inside a token.
        inside = look == GROUPED and group >= 0
        if not (inside and row and panel.groups[index - side] == group):
            cell[0] *= 0.55 if inside else 0.8
        if not (inside and col and panel.groups[index - 1] == group):
            cell[:, 0] *= 0.55 if inside else 0.8
    image = Image.fromarray(canvas.round().astype(np.uint8))
    _draw_dots(image, panel, edges, heights)
    return image


def _draw_dots(
    image: Image.Image, panel: Panel, edges: NDArray[np.int64], heights: NDArray[np.int64]
) -> None:
    """A dot at the place of every token that others are part of."""
    pen, side = ImageDraw.Draw(image), len(edges) - 1
    for place in np.unique(panel.groups[panel.looks == GROUPED]).tolist():
        if place < side * (len(heights) - 1):
            row, col = divmod(place, side)
            x, y = (edges[col] + edges[col + 1]) / 2, (heights[row] + heights[row + 1]) / 2
            pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill="white", outline="black")


def draw_view(panel: Panel, seen: Seen) -> Image.Image:
    """A panel over all views of a picture, side by side."""
    return beside([draw_panel(view.picture, panel_of(panel, view)) for view in seen.views])


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one height in a row."""
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    row, left = Image.new("RGB", (width, images[0].height), "white"), 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return row


def draw_original(seen: Seen) -> Image.Image:
    """The picture as it was given, as high as a panel and at most twice as wide."""
    image = seen.original.convert("RGB")
    width = min(max(1, round(PANEL * image.width / image.height)), 2 * PANEL)
    height = max(1, round(width * image.height / image.width))
    canvas = Image.new("RGB", (width, PANEL), "white")
    canvas.paste(image.resize((width, min(height, PANEL)), Image.Resampling.LANCZOS))
    return canvas


def draw_sheet(seen: Seen, sites: Sequence[Panel], heading: str) -> Image.Image:
    """The picture as it was given and all sites side by side, with captions and a legend.

    Args:
        seen: The picture.
        sites: Its panels.
        heading: One line or two.
    """
    given = ("the picture", f"{seen.original.width} x {seen.original.height} pixels")
    steps = [(*given, draw_original(seen)), *draw_steps(seen, sites)]
    cell = max(image.width for _, _, image in steps)
    columns = max(1, min(len(steps), ACROSS * (PANEL + MARGIN) // (cell + MARGIN)))
    rows = math.ceil(len(steps) / columns)
    width = columns * (cell + MARGIN) + MARGIN
    lines, head = _wrapped(heading, width)
    height = rows * (PANEL + CAPTION + MARGIN) + head + CAPTION
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    pen.text((MARGIN, MARGIN // 2), lines, fill="black", font=font)
    for index, (title, caption, image) in enumerate(steps):
        row, col = divmod(index, columns)
        left = MARGIN + col * (cell + MARGIN)
        top = head + row * (PANEL + CAPTION + MARGIN)
        sheet.paste(image, (left, top))
        pen.text((left, top + PANEL + 4), title, fill="black", font=font)
        pen.text((left, top + PANEL + 26), caption, fill=(90, 90, 90), font=font)
    _draw_legend(pen, font, height - CAPTION + MARGIN // 2, legend(sites))
    return sheet


def draw_steps(seen: Seen, sites: Sequence[Panel]) -> list[tuple[str, str, Image.Image]]:
    """Title, caption and image of what the model sees and of every site."""
    whole = [
        view.picture.convert("RGB").resize(
            (round(PANEL * view.places.shape[1] / view.places.shape[0]), PANEL),
            Image.Resampling.LANCZOS,
        )
        for view in seen.views
    ]
    first = ("what the model sees", f"{len(sites[0].looks)} patches", beside(whole))
    return [first, *((panel.title, panel.caption, draw_view(panel, seen)) for panel in sites)]


def draw_frames(seen: Seen, sites: Sequence[Panel], heading: str) -> list[Image.Image]:
    """A frame for what the model sees and for every site, as a sheet of one panel each."""
    font = ImageFont.load_default(FONT_SIZE)
    frames = []
    for title, caption, image in draw_steps(seen, sites):
        lines, head = _wrapped(heading, image.width + 2 * MARGIN)
        frame = Image.new("RGB", (image.width + 2 * MARGIN, head + PANEL + CAPTION), "white")
        pen = ImageDraw.Draw(frame)
        pen.text((MARGIN, MARGIN // 2), lines, fill="black", font=font)
        frame.paste(image, (MARGIN, head))
        pen.text((MARGIN, head + PANEL + 4), title, fill="black", font=font)
        pen.text((MARGIN, head + PANEL + 26), caption, fill=(90, 90, 90), font=font)
        frames.append(frame)
    return frames


def _wrapped(heading: str, width: int) -> tuple[str, int]:
    """A heading in lines that fit a width in pixels, and the height that they take."""
    lines = [part for line in heading.splitlines() for part in textwrap.wrap(line, width // LETTER)]
    return "\n".join(lines), max(CAPTION, MARGIN + LINE * len(lines))


def legend(sites: Sequence[Panel]) -> list[tuple[str, Color | None, bool]]:
    """What the looks of these panels say: text, colour (None for clear) and whether it is hatched."""
    looks = {look for panel in sites for look in panel.looks.tolist()}
    return [entry for look, entry in LEGEND.items() if look in looks]


def _draw_legend(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    top: int,
    entries: Sequence[tuple[str, Color | None, bool]],
) -> None:
    left = MARGIN
    for text, colour, hatched in entries:
        pen.rectangle((left, top, left + KEY, top + KEY), fill=colour, outline=(90, 90, 90))
        if colour is not None and hatched:
            for at in (HATCH, 2 * HATCH, 3 * HATCH):
                near, far = max(0, at - KEY), min(at, KEY)
                ends = (left + near, top + far, left + far, top + near)
                pen.line(ends, fill=tuple(int(0.55 * c) for c in colour), width=2)
        pen.text((left + 26, top - 1), text, fill="black", font=font)
        left += 26 + 14 + 9 * len(text) + MARGIN


def save_sheet(sheet: Image.Image, stream: IO[bytes]) -> None:
    """Write a sheet as PNG."""
    info = PngInfo()
    info.add_text("Software", TOOL)
    sheet.save(stream, "PNG", pnginfo=info)


def save_frames(frames: Sequence[Image.Image], stream: IO[bytes]) -> None:
    """Write frames as a GIF that begins again."""
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    first, *others = [frame.quantize(256) for frame in frames]
    first.save(
        stream,
        "GIF",
        save_all=True,
        append_images=others,
        duration=times,
        loop=0,
        comment=MARKS[".gif"],
    )
