#!/usr/bin/env bash
# Builds the demo model at ratios 0.33, 0.5 and 1.0 and asks it, from the shell and from Python.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-build/examples/01_build_and_ask}
picture=$(python -c 'from lvlm_export.demo import PICTURES; print(PICTURES / "scene_0.png")')

lvlm-export build --ratio 0.33 --ratio 0.5 -o "$out/bundle"
lvlm-export run "$out/bundle" --image "$picture" "What color is the circle?"
lvlm-export run "$out/bundle" --image "$picture" --ratio 1.0 "How many circles are there?"
python "$here/ask.py" "$out/bundle" "$picture"
