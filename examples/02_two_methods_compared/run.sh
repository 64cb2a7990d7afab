#!/usr/bin/env bash
# Accuracy of two methods at ratio 0.2 on the same sixty questions.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-build/examples/02_two_methods_compared}

python "$here/questions.py" "$out/questions"
for method in fastv downsample; do
  # The gate against PyTorch is left out here to be quick; leave it in where it counts.
  lvlm-export build --method "$method" --ratio 0.2 --no-verify -o "$out/$method"
  lvlm-export eval "$out/$method" --data "$out/questions/questions.jsonl" --csv "$out/$method.csv"
done
