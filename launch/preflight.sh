#!/bin/sh
# Checks the requirements before installation. Prints one line for each missing one, and exits with 1 if there are any.
# Usage: launch/preflight.sh PYTHON DIRECTORY [FREE_GIB]
python=${1:-python3} directory=${2:-.} need_gib=${3:-6}
missing=0
lacks() { echo "missing: $1" >&2; missing=1; }

if ! command -v "$python" >/dev/null 2>&1; then
    lacks "python3 (3.11 or newer); install it, or name one: make PYTHON=/path/to/python3"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    lacks "Python 3.11 or newer ($python is $("$python" -V 2>&1)); name another: make PYTHON=python3.12"
elif ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    lacks "Python's venv module; on Debian and Ubuntu: apt-get install python3-venv"
elif ! "$python" -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'; then
    lacks "Python's headers (DeepSpeed compiles an operator against them); on Debian and Ubuntu: apt-get install python3-dev"
fi
command -v git >/dev/null 2>&1 || lacks "git"
found=""
for compiler in "${CXX:-}" c++ g++ clang++; do
    [ -n "$compiler" ] && command -v "$compiler" >/dev/null 2>&1 && found=$compiler
done
[ -n "$found" ] || lacks "a C++ compiler (DeepSpeed compiles an operator on first use); on Debian and Ubuntu: apt-get install g++"
free_kib=$(df -Pk "$directory" | awk 'NR == 2 { print $4 }')
[ "$free_kib" -ge $((need_gib * 1024 * 1024)) ] ||
    lacks "disk space: ${need_gib} GiB needed in $directory, $((free_kib / 1024 / 1024)) GiB free"
exit $missing
