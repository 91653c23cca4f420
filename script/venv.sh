# Sourced by the scripts beside it: finds a Python, and keeps one virtual environment per lock file.
# shellcheck shell=bash
#
# An environment is whole when its stamp is there and says what this checkout asks for: the stamp is written last
# and removed first, so an interrupted installation is begun again. Two scripts that start at once
# meet at a file lock, and the second finds the work done.

# The checkout, wherever the caller stands; CDPATH would make cd look elsewhere, and print.
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf 'engines: %s\n' "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# Runs a command and hands it the signals that end the script: a shell that waits for a foreground
# command would die first and leave the command running.
supervised() {
  local child status=0
  "$@" </dev/null &
  child=$!
  # shellcheck disable=SC2064  # the child's id is wanted now
  trap "kill -TERM $child 2>/dev/null; wait $child; exit 130" INT
  # shellcheck disable=SC2064
  trap "kill -TERM $child 2>/dev/null; wait $child; exit 143" TERM HUP
  wait "$child" || status=$?
  trap - INT TERM HUP
  return "$status"
}

# Prints the first Python that is at least 3.11. PYTHON, when set, is the only candidate.
find_python() {
  local candidate path
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3}; do
    path="$(command -v -- "$candidate" 2>/dev/null)" || continue
    if "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$path"
      return 0
    fi
  done
  die "Python 3.11 or later is needed, and ${PYTHON:-python3} is older or missing"
}

# Debian and Ubuntu ship python3 without ensurepip; the package that brings it is named for the Python's version.
require_venv_module() {
  local python="$1" package log command
  "$python" -c 'import ensurepip, venv' 2>/dev/null && return 0
  package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  if ! command -v apt-get >/dev/null; then
    die "$python has no venv module; install the package of this system that brings it, then start again"
  fi
  command="apt-get update && apt-get install -y $package"
  if [[ "$(id -u)" != 0 ]]; then
    die "$python has no venv module. This command installs it: sudo sh -c '$command'"
  fi
  say "installing $package, which $python lacks"
  log="$(mktemp)"
  if ! DEBIAN_FRONTEND=noninteractive supervised sh -c "$command" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -f "$log"
    die "$package could not be installed with: $command"
  fi
  rm -f "$log"
  "$python" -c 'import ensurepip, venv' || die "$package is installed, and $python still has no venv module"
}

# What the environment must have been made from; any change makes it anew. The path is part of it because
# an environment cannot be moved.
wanted_stamp() {
  local python="$1" lock="$2"
  {
    printf '%s\n' "$root"
    "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
    sha256sum <"$root/requirements/$lock"
    sed '/^\[tool\./,$d' "$root/pyproject.toml" # the tools' own settings make no difference to what is installed
  } | sha256sum | cut -d ' ' -f 1
}

is_whole() {
  local venv="$1" stamp="$2"
  [[ "$(cat "$venv/stamp" 2>/dev/null)" == "$stamp" ]] && "$venv/bin/python" -c 'import msgspec' 2>/dev/null
}

# Quiet up to errors: a mirror without some package is a warning to pip, and noise here.
pip_install() {
  local venv="$1"
  shift
  supervised "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input "$@" ||
    die "the packages could not be installed; the next start tries again"
}

build_venv() {
  local python="$1" venv="$2" lock="$3" stamp="$4"
  rm -f "$venv/stamp"
  say "making ${venv##*/} with $("$python" --version)"
  supervised "$python" -m venv --clear "$venv"
  say "installing the packages of requirements/$lock (about a minute the first time)"
  # Wheels only: a machine with nothing prepared has no compiler, and a source build would fetch unpinned tools.
  pip_install "$venv" --require-hashes --only-binary :all: -r "$root/requirements/$lock"
  pip_install "$venv" --no-index --no-deps --no-build-isolation --editable "$root"
  printf '%s\n' "$stamp" >"$venv/stamp.new"
  mv -f "$venv/stamp.new" "$venv/stamp"
}

# ensure_venv NAME LOCK: makes $root/NAME hold exactly what requirements/LOCK says, and this checkout.
ensure_venv() {
  local name="$1" lock="$2" venv python stamp
  venv="$root/$name"
  python="$(find_python)"
  stamp="$(wanted_stamp "$python" "$lock")"
  is_whole "$venv" "$stamp" && return 0
  require_venv_module "$python"
  # The lock belongs to the open file: it ends with the last process that holds it, however that one ends.
  exec 9>"$root/$name.flock"
  if ! flock --nonblock 9; then
    say "waiting for another script that is making $name"
    supervised flock --timeout 1800 9 || die "$name is still being made by another script after 30 minutes"
  fi
  is_whole "$venv" "$stamp" || build_venv "$python" "$venv" "$lock" "$stamp"
  exec 9>&-
}
