"""Draw docs/merging.png: which patches of a scene go into which, under ``local`` at a third of the tokens.

``make merging-picture`` runs it, again whenever the demo's checkpoint is another.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lvlm_export.demo.scenes import make_scene
from lvlm_profiles.processes import python_command

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "merging"
OUTPUT = ROOT / "docs" / "merging.png"
METHOD, RATIO, SCENE = "local", "0.33", 11


def main() -> None:
    """Build the demo's bundle, make the scene and draw."""
    WORK.mkdir(parents=True, exist_ok=True)
    scene = WORK / "scene.png"
    make_scene(SCENE, "test").image.save(scene)
    bundle = str(WORK / "bundle")
    build = ("build", "--method", METHOD, "--ratio", RATIO, "-o", bundle, "--force")
    draw = ("visualize", bundle, "--image", str(scene), "--ratio", RATIO, "-o", str(OUTPUT))
    for words in (build, draw):
        subprocess.run(python_command("lvlm_export", *words), check=True)


if __name__ == "__main__":
    main()
