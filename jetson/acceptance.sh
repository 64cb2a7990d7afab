#!/usr/bin/env bash
# Checks a bundle on a Jetson and writes one JSON file to send back: the device, whether the operator
# gate passes, whether engines were built, whether their answers are those of the build, and the cost
# of every ratio; each step with its exit status and output.
#
#   ./acceptance.sh BUNDLE --device NAME [--compute-capability SM] [--output FILE] [--iterations N]
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bundle='' device='' capability='' output=acceptance.json iterations=10
while (($#)); do
  case $1 in
    --device) device=${2:?--device needs a name}; shift 2 ;;
    --compute-capability) capability=${2:?--compute-capability needs sm87 or the like}; shift 2 ;;
    --output) output=${2:?--output needs a file}; shift 2 ;;
    --iterations) iterations=${2:?--iterations needs a number}; shift 2 ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) usage_error "unknown option $1; see --help" ;;
    *) [[ -z $bundle ]] || usage_error "one bundle, not two: $bundle and $1"; bundle=$1; shift ;;
  esac
done
[[ -n $bundle ]] || usage_error "name the bundle"
[[ -n $device ]] || usage_error "name the device, --device orin_nano_8gb"
[[ $iterations =~ ^[1-9][0-9]*$ ]] || usage_error "--iterations $iterations is no count"
[[ -e $bundle/manifest.json ]] || fail "$bundle is not a bundle: it has no manifest.json"

read -r major revision < <(l4t_version) || exit 1
# The PATH first, then where install.sh puts it unless it is told otherwise.
tool=${LVLM_EXPORT:-lvlm-export}
[[ -n ${LVLM_EXPORT:-} ]] || command -v "$tool" >/dev/null || tool=$HOME/lvlm-export/bin/lvlm-export
python=${LVLM_PYTHON:-/usr/bin/python3}
command -v "$tool" >/dev/null ||
  fail "$tool is not there; run install.sh, or name the command, LVLM_EXPORT=DIR/bin/lvlm-export"
tensorrt=$("$python" -I -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null) ||
  fail "TensorRT's Python module is missing; run install.sh"

work=$(mktemp -d) part=''
trap 'rm -rf "$work" ${part:+"$part"}' EXIT
status=0 progress=1
# What is piped on is the report alone.
[[ $output != /dev/stdout ]] || progress=2

# step NAME COMMAND...: run it, keep its output and status, continue.
step() {
  local name=$1 code=0
  shift
  echo "$name: $*" >&"$progress"
  "$@" >"$work/$name.out" 2>"$work/$name.err" || code=$?
  echo "$code" >"$work/$name.status"
  if ((code)); then
    status=1
    tail -n 1 "$work/$name.err" >&2
  fi
}

# Every time depends on the power mode; without nvpmodel the report notes the failure.
step power nvpmodel -q
step inspect "$tool" inspect "$bundle" --json
step check "$tool" check "$bundle" --target "trt-$(cut -d. -f1,2 <<<"$tensorrt")" --json
step engines "$tool" engines "$bundle" --device "$device" ${capability:+--compute-capability "$capability"} --json
step golden "$tool" verify "$bundle" --golden --backend tensorrt --json
step profile "$tool" profile "$bundle" --backend tensorrt --iterations "$iterations" \
  -o "$work/report"

# Whole or not at all; a pipe, a device or a stream of this process is written as it is. The name is
# asked, not what it resolves to: /dev/stdout in a pipe is a link to a name that does not exist.
written=$output
if [[ ! $output =~ ^(/dev/(stdout|stderr|fd/.*)|/proc/.*)$ && (! -e $output || -f $output) ]]; then
  target=$(readlink -m -- "$output")
  rights=$(stat -c %a -- "$target" 2>/dev/null) || rights=$(printf '%o' $((0666 & ~0$(umask))))
  part=$(mktemp "$(dirname -- "$target")/.${target##*/}.XXXXXXXX") || fail "$output cannot be written"
  written=$part
fi
"$python" -I - "$work" "$written" "R$major.$revision" "$tensorrt" "$device" <<'PYTHON'
import json
import pathlib
import sys

work, written, l4t, tensorrt, device = sys.argv[1:]
steps = {}
for path in sorted(pathlib.Path(work).glob("*.status")):
    output_text = path.with_suffix(".out").read_text(encoding="utf-8")
    steps[path.stem] = {
        "status": int(path.read_text(encoding="utf-8")),
        "output": json.loads(output_text)
        if output_text.lstrip().startswith("{")
        else output_text,
        "errors": path.with_suffix(".err").read_text(encoding="utf-8"),
    }
profile = pathlib.Path(work, "report", "report.json")
report = {
    "jetson_linux": l4t,
    "tensorrt": tensorrt,
    "device": device,
    "steps": steps,
    "profile": json.loads(profile.read_text(encoding="utf-8")) if profile.exists() else None,
}
with open(written, "a", encoding="utf-8") as stream:
    stream.write(json.dumps(report, indent=1) + "\n")
PYTHON
if [[ -n $part ]]; then
  chmod "$rights" "$part"
  mv -fT "$part" "$target"
fi
echo "wrote $output" >&"$progress"
exit "$status"
