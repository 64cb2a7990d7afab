"""What becomes of a picture's patches, as one HTML page that plays and has a slider."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence

from PIL import Image

from lvlm_export.study.panels import Panel
from lvlm_export.study.pictures import FRAME_MS, MARKS, draw_original, draw_steps, legend
from lvlm_export.study.views import Seen

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">{mark}<title>{heading}</title>
<style>
body {{ font: 16px system-ui, sans-serif; margin: 2rem; color: #1b1b1f; background: #fff; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 0; }} figure img {{ max-width: 100%; height: min(60vmin, 540px); object-fit: contain; }}
figure #original {{ height: min(35vmin, 320px); }} p {{ overflow-wrap: anywhere; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e8e8ec; background: #16161a; }} }}
input {{ width: min(80vmin, 720px); display: block; margin: 1rem 0; }}
.key {{ display: inline-block; width: 1em; height: 1em; margin: 0 .4em 0 1em;
  vertical-align: -.1em; border: 1px solid #666; }}
.goes {{ background-image: repeating-linear-gradient(135deg, #0007 0 2px, #0000 2px 6px); }}
</style></head><body>
<h1>{heading}</h1>
<p>{asked}</p>
<div class="pictures">
<figure><img id="original" alt="the picture" src="{original}"><figcaption>the picture</figcaption></figure>
<figure><img id="picture" alt="" src="{first}"><figcaption id="caption"></figcaption></figure>
</div>
<label for="site">Site</label>
<input id="site" type="range" min="0" max="{last}" value="0" step="1">
<button id="play" type="button">Play</button>
<p>{legend}</p>
<script>
const steps = {steps};
const show = (index) => {{
  picture.src = steps[index].image;
  picture.alt = caption.textContent = steps[index].title + ": " + steps[index].caption;
}};
let timer = 0;
const stop = () => {{ clearInterval(timer); timer = 0; play.textContent = "Play"; }};
const advance = () => {{
  site.value = (Number(site.value) + 1) % steps.length;
  show(Number(site.value));
}};
site.addEventListener("input", () => {{ stop(); show(Number(site.value)); }});
play.addEventListener("click", () => {{
  if (timer) return stop();
  timer = setInterval(advance, {frame_ms});
  play.textContent = "Stop";
  advance();
}});
show(0);
</script></body></html>
"""


def draw_page(seen: Seen, sites: Sequence[Panel], heading: str) -> str:
    """One self-contained HTML page that plays the sites, with a slider through them.

    Args:
        seen: The picture.
        sites: Its panels.
        heading: A title; further lines stand below it.
    """
    title, _, asked = heading.partition("\n")
    steps = [
        {"title": name, "caption": caption, "image": _data_url(image)}
        for name, caption, image in draw_steps(seen, sites)
    ]
    keys = "".join(
        f'<span class="key{" goes" if hatched else ""}"'
        f' style="background-color: {"transparent" if colour is None else f"rgb{colour}"}"></span>{text}'
        for text, colour, hatched in legend(sites)
    )
    return PAGE.format(
        mark=MARKS[".html"].decode(),
        heading=html.escape(title),
        asked=html.escape(asked),
        original=_data_url(draw_original(seen)),
        first=steps[0]["image"],
        last=len(steps) - 1,
        legend=keys,
        frame_ms=FRAME_MS,
        steps=json.dumps(steps).replace("<", "\\u003c"),
    )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
