#!/bin/sh
# Checks the model of the lease protocol (docs/protocol/lease.pml) with Spin: all its states with the fencing token, and
# that the two variants without it are found to be broken. Needs spin and a C compiler; says so and ends with 0 where they
# are missing, unless --require is given.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
model=$root/docs/protocol/lease.pml
depth=200000

for tool in spin cc; do
    if ! command -v "$tool" >/dev/null; then
        echo "protocol: skipped, $tool is not installed (Debian, Ubuntu: apt-get install spin gcc)"
        [ "${1:-}" = --require ] && exit 1
        exit 0
    fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cp "$model" lease.pml

# Prints "<errors> <states>" of one variant.
search() {
    rm -f pan* ./*.trail
    spin -DFENCE="$1" -a lease.pml >spin.log 2>&1 || { cat spin.log >&2; exit 2; }
    cc -O2 -w -DVECTORSZ=2048 -o pan pan.c
    ./pan -m"$depth" -n >pan.log 2>&1 || { cat pan.log >&2; exit 2; }
    if grep -q 'max search depth too small\|out of memory' pan.log; then cat pan.log >&2; exit 2; fi
    sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log
    sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log
}

verdict() {
    found=$(search "$1")
    errors=$(printf '%s\n' "$found" | sed -n 1p)
    states=$(printf '%s\n' "$found" | sed -n 2p)
}

failed=0
verdict 2
if [ "$errors" = 0 ]; then
    echo "protocol: with the fencing token: holds in all $states states (at most one effect, only the holder ends a job)"
else
    echo "protocol: with the fencing token: BROKEN; the way there:"
    spin -DFENCE=2 -t -p lease.pml | tail -n 40
    failed=1
fi
for variant in 1 0; do
    case $variant in
    1) name='with a check of the state only' how='a job is ended by a worker that does not hold it' ;;
    *) name='without any check' how='a job gets two results' ;;
    esac
    verdict "$variant"
    if [ "$errors" = 0 ]; then
        echo "protocol: $name: holds, so the model does not show what the token is for"
        failed=1
    else
        echo "protocol: $name: broken within $states states, as expected: $how"
    fi
done
exit "$failed"
