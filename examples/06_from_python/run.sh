#!/usr/bin/env bash
# Builds the demo model and asks it from a Python program in every way that a session knows.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-build/examples/06_from_python}
picture=$(python -c 'from lvlm_export.demo import PICTURES; print(PICTURES / "mosaic_0.png")')

lvlm-export build --ratio 0.33 --ratio 0.5 -o "$out/bundle"
python "$here/ask.py" "$out/bundle" "$picture"
