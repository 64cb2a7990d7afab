#!/usr/bin/env bash
# The runtime's and profiles' tests as a device has them: the installed wheel with its own
# dependencies, no torch and no onnx, and a bundle that this machine's environment built.
#
#   tools/test_runtime.sh PYTHON_VERSION tested|lowest opset24|decomposed
#
# `tested` takes the versions of constraints.txt, `lowest` the lowest that pyproject.toml admits.
# BIN is where lvlm-export is installed (.venv/bin), JOBS the number of test workers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:?name a Python version} versions=${2:?tested or lowest} dialect=${3:?opset24 or decomposed}
bin=${BIN:-.venv/bin}
venv=.venv-py$version-$versions

python=''
for each in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
  # A name on the PATH may be a stub that only says what could be installed.
  if "$each" -c '' 2>/dev/null; then
    python=$each
    break
  fi
done
if [[ -z $python ]]; then
  echo "NOT RUN: the runtime's and profiles' tests on Python $version, which is not at hand here"
  exit 0
fi

if [[ ! $venv/.ready -nt pyproject.toml || ! $venv/.ready -nt constraints.txt ]]; then
  echo "setting up $venv"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  pip=("$venv/bin/pip" -qq --disable-pip-version-check)
  if [[ $versions == lowest ]]; then
    # pip has no way to ask for the lowest versions.
    "${pip[@]}" install uv
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --resolution lowest-direct \
      --only-binary :all: --requirement pyproject.toml --extra cpu --extra serve
    "$venv/bin/uv" pip freeze --python "$venv/bin/python" >"$venv/lowest.txt"
    "${pip[@]}" install --constraint "$venv/lowest.txt" ".[cpu,test]"
  else
    "${pip[@]}" install --constraint constraints.txt ".[cpu,test]"
  fi
  touch "$venv/.ready"
fi
"$venv/bin/pip" -qq --disable-pip-version-check install --no-deps --force-reinstall .

# build NAME OPTIONS...: the demo model's bundle in build/bundles/NAME, as the tests' own: by a method
# with sites in the tower and in the decoder.
build() {
  local bundle=build/bundles/$1
  mkdir -p build/bundles
  "$bin/lvlm-export" build --method illava --ratio 0.33 --ratio 0.5 "${@:2}" --force -o "$bundle" \
    >"$bundle.log" 2>&1 || { cat "$bundle.log" >&2; exit 1; }
}
bundle=build/bundles/$dialect
build "$dialect" --dialect "$dialect"

echo "Python $version, $versions versions: $("$venv/bin/pip" list --format freeze |
  grep -iE '^(numpy|pillow|tokenizers|jinja2|click|rich|onnxruntime)=' | tr '\n' ' ')"
"$venv/bin/python" -m pytest -n "${JOBS:-2}" --dist worksteal -p no:cacheprovider -rs \
  --runtime-only --demo-bundle "$bundle" tests/runtime tests/profiles tests/test_imports.py

if [[ $dialect == opset24 ]]; then
  # The graphs above have ONNX Runtime's own nodes for the caches; these have the standard ones.
  build standard --target cuda --precision fp32
  "$venv/bin/lvlm-export" verify build/bundles/standard --golden --device cpu | tail -n 1
fi
