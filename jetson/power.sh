#!/usr/bin/env bash
# Shows, sets and restores power mode and clocks, so that a measurement has a known power mode.
#
#   ./power.sh show                 the mode now
#   sudo ./power.sh set MODE_ID     change mode, lock clocks, remember what was before
#   sudo ./power.sh restore         back to what was before "set"
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# What "restore" believes as root must be root's: a directory that nobody else can make or enter.
STATE=${LVLM_POWER_STATE:-/var/lib/lvlm-export-power}

need() {
  command -v "$1" >/dev/null || fail "$1 is not there; it comes with Jetson Linux (nvidia-l4t-nvpmodel)"
}

# "NV Power Mode: 15W" on one line, its id on the next.
current_mode() {
  local output
  output=$(nvpmodel -q) || fail "nvpmodel -q failed; try with sudo"
  local id
  id=$(grep -E '^[0-9]+$' <<<"$output" | head -n 1) || fail "nvpmodel -q named no mode: $output"
  echo "$id"
}

forget() {
  rm -f "$STATE/mode" "$STATE/clocks"
  rmdir "$STATE"
}

# The state is a directory of this user alone, and no link to one.
trust_state() {
  [[ ! -L $STATE && -d $STATE ]] || fail "nothing to restore: $STATE is no directory"
  local owner rights
  read -r owner rights < <(stat -c '%u %a' "$STATE")
  [[ $owner == "$EUID" && $rights == 700 ]] ||
    fail "$STATE belongs to user $owner with rights $rights; it must be user ${EUID}'s, with rights 700"
}

case ${1:-} in
  show)
    need nvpmodel
    nvpmodel -q
    ;;
  set)
    [[ ${2:-} =~ ^[0-9]+$ ]] || usage_error "set needs the number of a mode; see /etc/nvpmodel.conf"
    need nvpmodel
    need jetson_clocks
    [[ ! -e $STATE && ! -L $STATE ]] || fail "$STATE exists: \"power.sh restore\" first"
    before=$(current_mode)
    # Without -p: what somebody else has just put there is refused.
    mkdir -m 700 "$STATE" || fail "$STATE cannot be made; run with sudo"
    echo "$before" >"$STATE/mode"
    jetson_clocks --store "$STATE/clocks" ||
      { forget; fail "jetson_clocks --store failed; nothing was changed"; }
    nvpmodel -m "$2"
    jetson_clocks
    [[ $(current_mode) == "$2" ]] || fail "the mode is $(current_mode) and not $2; a reboot may be needed"
    echo "mode $2, clocks locked; before it was $before"
    ;;
  restore)
    need nvpmodel
    need jetson_clocks
    trust_state
    [[ -r $STATE/mode ]] || fail "nothing to restore: $STATE/mode is not there"
    mode=$(<"$STATE/mode")
    [[ $mode =~ ^[0-9]+$ ]] || fail "$STATE/mode holds no number of a mode; remove $STATE"
    jetson_clocks --restore "$STATE/clocks"
    nvpmodel -m "$mode"
    echo "mode $mode"
    forget
    ;;
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
  *) usage_error "give show, set MODE_ID or restore" ;;
esac
