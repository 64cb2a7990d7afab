#!/usr/bin/env bash
# Installs the package on a Jetson with what it needs to run bundles, and cuda-bindings; no torch.
# TensorRT comes with JetPack and is used as it is; ONNX Runtime (on the CPU) comes where it is wanted.
#
#   ./install.sh [--venv DIR] [--package WHEEL_OR_DIRECTORY] [--with-onnxruntime]
#                [--service DEVICE [--bundles DIR]] [--dry-run]
#
# The command is linked into ~/.local/bin. --service installs the unit that builds engines at boot, for
# bundles below --bundles (/var/lib/lvlm-export/bundles); DEVICE is a name of `lvlm-export list targets`.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

venv=$HOME/lvlm-export
package=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run='' extra='' service='' bundles=/var/lib/lvlm-export/bundles
links=$HOME/.local/bin
# Tests point these at directories of their own.
units=${LVLM_UNITS:-/etc/systemd/system} settings=${LVLM_SETTINGS:-/etc/lvlm-export.conf}

while (($#)); do
  case $1 in
    --venv) venv=${2:?--venv needs a directory}; shift 2 ;;
    --package) package=${2:?--package needs a wheel or a directory}; shift 2 ;;
    --with-onnxruntime) extra='[cpu]'; shift ;;
    --service) service=${2:?--service needs the name of a device, orin_nano_8gb}; shift 2 ;;
    --bundles) bundles=${2:?--bundles needs a directory}; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) usage_error "unknown argument $1; see --help" ;;
  esac
done

venv=$(realpath -ms -- "$venv") bundles=$(realpath -ms -- "$bundles")
if [[ -n $service ]]; then
  # What a unit reads is not quoted.
  for each in "$venv" "$bundles" "$service"; do
    [[ $each =~ ^[A-Za-z0-9/._-]+$ ]] || usage_error "$each cannot stand in a unit; name one of letters, digits and ./_-"
  done
fi

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
# ml_dtypes is for bundles in bfloat16.
run "$venv/bin/pip" install --disable-pip-version-check "$package$extra" "$cuda" "ml_dtypes>=0.5"

# The command on the PATH; what is not a link of ours stays.
command=$links/lvlm-export
if [[ -e $command || -L $command ]] && [[ $(readlink -- "$command") != */bin/lvlm-export ]]; then
  echo "note: $command is something else and stays; the command is $venv/bin/lvlm-export"
  command=$venv/bin/lvlm-export
else
  run mkdir -p "$links"
  run ln -sfn "$venv/bin/lvlm-export" "$command"
  [[ :$PATH: == *:$links:* ]] ||
    echo "note: $links is not on the PATH; type: export PATH=\"$links:\$PATH\" (and put it into ~/.profile)"
fi

if [[ -n $service ]]; then
  root=(sudo)
  ((EUID)) || root=()
  unit=lvlm-export-engines@.service
  text=$(<"$(dirname "${BASH_SOURCE[0]}")/$unit")
  text=${text//"/opt/lvlm-export"/"$venv"}
  text=${text//"/var/lib/lvlm-export/bundles"/"$bundles"}
  text=${text//"/etc/lvlm-export.conf"/"$settings"}
  # The commands of its environment can be changed by who made it, so they get that user's rights.
  text=${text//"Type=oneshot"/"Type=oneshot
User=$(id -un)"}
  run "${root[@]}" mkdir -p "$bundles"
  run "${root[@]}" chown "$(id -un)" "$bundles"
  write() { if [[ -n $dry_run ]]; then echo "would write: $1"; else "${root[@]}" tee "$1" >/dev/null; fi; }
  write "$units/$unit" <<<"$text"
  write "$settings" <<<"DEVICE=$service"
  run "${root[@]}" systemctl daemon-reload
  echo "service installed; for the bundle $bundles/NAME: sudo systemctl enable --now" \
    "\"lvlm-export-engines@\$(systemd-escape NAME).service\""
fi
echo "installed; next: ${command/#$HOME/\~} engines BUNDLE --device ${service:-orin_nano_8gb}"
