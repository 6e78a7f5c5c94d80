#!/bin/sh
# Prints the Python for the virtual environment: $PYTHON if given, else the first one of version 3.11 or newer.
set -eu

recent='import sys; sys.exit(sys.version_info < (3, 11))'

if [ -n "${PYTHON:-}" ]; then
    if ! "$PYTHON" -c "$recent" 2>/dev/null; then
        echo "PYTHON=$PYTHON is not a Python of 3.11 or newer; name another one, or leave PYTHON unset." >&2
        exit 1
    fi
    echo "$PYTHON"
    exit
fi
for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c "$recent" 2>/dev/null; then
        echo "$candidate"
        exit
    fi
done
echo "No Python of 3.11 or newer was found. Install one (on Ubuntu 22.04: apt-get install python3.11), or name yours with PYTHON=/path/to/python3." >&2
exit 1
