# Sourced by the scripts beside it: the version of Jetson Linux, and error messages.
# shellcheck shell=bash

# Tests point these at files of their own.
RELEASE_FILE=${LVLM_RELEASE_FILE:-/etc/nv_tegra_release}

fail() {
  echo "error: $*" >&2
  exit 1
}

usage_error() {
  echo "error: $*" >&2
  exit 2
}

# "# R36 (release), REVISION: 4.3, GCID: ..." -> "36 4.3"
l4t_version() {
  [[ -r $RELEASE_FILE ]] || fail "$RELEASE_FILE is not there; this is no Jetson, or no Jetson Linux"
  local line
  line=$(head -n 1 "$RELEASE_FILE")
  [[ $line =~ ^#\ R([0-9]+)\ \(release\),\ REVISION:\ ([0-9]+(\.[0-9]+)*) ]] ||
    fail "$RELEASE_FILE does not begin with a release line: $line"
  echo "${BASH_REMATCH[1]} ${BASH_REMATCH[2]}"
}

# The JetPack generation of a Jetson Linux release: R36 is JetPack 6, R38 and R39 are JetPack 7.
jetpack_major() {
  case $1 in
    36) echo 6 ;;
    38 | 39) echo 7 ;;
    *) fail "Jetson Linux R$1 is not known; JetPack 6 (R36) and JetPack 7 (R38, R39) are" ;;
  esac
}
