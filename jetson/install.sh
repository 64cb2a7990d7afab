#!/usr/bin/env bash
# Installs the package on a Jetson with what it needs to run bundles, and cuda-bindings; no torch.
# TensorRT comes with JetPack and is used as it is; ONNX Runtime (on the CPU) comes where it is wanted.
#
#   ./install.sh [--venv DIR] [--package WHEEL_OR_DIRECTORY] [--with-onnxruntime] [--dry-run]
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

venv=$HOME/lvlm-export
package=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run='' extra=''

while (($#)); do
  case $1 in
    --venv) venv=${2:?--venv needs a directory}; shift 2 ;;
    --package) package=${2:?--package needs a wheel or a directory}; shift 2 ;;
    --with-onnxruntime) extra='[cpu]'; shift ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) usage_error "unknown argument $1; see --help" ;;
  esac
done

read -r major revision < <(l4t_version) || exit 1
jetpack=$(jetpack_major "$major")
python=${LVLM_PYTHON:-/usr/bin/python3}
echo "Jetson Linux R$major.$revision, JetPack $jetpack"

# The package needs Python 3.10: JetPack 6 has 3.10, JetPack 7 has 3.12.
"$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$python is older than Python 3.10"
tensorrt=$("$python" -I -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null) ||
  fail "TensorRT's Python module is missing; sudo apt-get install nvidia-jetpack (or python3-libnvinfer)"
echo "TensorRT $tensorrt"

# The backend uses the driver through cuda-python, of the driver's CUDA major version.
case $jetpack in
  6) cuda="cuda-bindings>=12.8,<13" ;;
  7) cuda="cuda-bindings>=13,<14" ;;
esac

run() {
  if [[ -n $dry_run ]]; then
    echo "would run: $*"
  else
    "$@"
  fi
}

# --system-site-packages: TensorRT's module is in the system's packages.
run "$python" -I -m venv --system-site-packages "$venv"
run "$venv/bin/pip" install --disable-pip-version-check "$package$extra" "$cuda"
echo "installed; next: $venv/bin/lvlm-export engines BUNDLE --device orin_nano_8gb"
