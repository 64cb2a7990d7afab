#!/usr/bin/env bash
# Profiles a bundle twice, picks a ratio for a latency, and compares the two reports.
set -euo pipefail
out=${1:-build/examples/04_profile_and_compare}
picture=$(python -c 'from lvlm_export.demo import PICTURES; print(PICTURES / "scene_0.png")')

lvlm-export build --ratio 0.33 --no-verify -o "$out/bundle"
for name in before after; do
  lvlm-export profile "$out/bundle" --image "$picture" --answer-tokens 8 --iterations 5 -o "$out/$name"
done
lvlm-export run "$out/bundle" --ttft 10s --image "$picture" "What color is the circle?"
# Twice the time is no noise; a gate of your own stands closer.
lvlm-export compare "$out/before" "$out/after" --fail-if ttft_ms:+100%
