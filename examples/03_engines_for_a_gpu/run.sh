#!/usr/bin/env bash
# Builds an fp16 bundle with TensorRT-RTX engines and shows what runs without a GPU.
set -euo pipefail
out=${1:-build/examples/03_engines_for_a_gpu}
picture=$(python -c 'from lvlm_export.demo import PICTURES; print(PICTURES / "scene_0.png")')
question="What color is the circle?"

lvlm-export build --ratio 0.33 --target rtx -o "$out/bundle"
lvlm-export inspect "$out/bundle"
ls "$out/bundle/engines/rtx"

if ! lvlm-export run "$out/bundle" --backend tensorrt --image "$picture" "$question"; then
  echo "no engine was loaded; the same graphs on the CPU:"
  lvlm-export run "$out/bundle" --backend onnxruntime --device cpu --image "$picture" "$question"
fi
