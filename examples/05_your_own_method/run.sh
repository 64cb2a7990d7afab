#!/usr/bin/env bash
# Builds the demo model with the method of centre.py and shows which patches it keeps.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-build/examples/05_your_own_method}
picture=$(python -c 'from lvlm_export.demo import PICTURES; print(PICTURES / "scene_0.png")')

rm -rf "$out/bundle"
python "$here/try_method.py" list methods | grep centre
python "$here/try_method.py" build --method centre --ratio 0.33 -o "$out/bundle"
# The bundle holds the reducer, so the rest needs neither the method nor PyTorch.
lvlm-export run "$out/bundle" --image "$picture" "What color is the shape in the center?"
lvlm-export visualize "$out/bundle" --image "$picture" --ratio 0.33 -o "$out/kept.png"
