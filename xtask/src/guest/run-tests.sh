#!/bin/sh
# Runs each line of the list as a test program with its arguments, and says how it ended.
. /coracle/settings
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export CORACLE_BIN=/coracle/bin/coracle CORACLE_SHIM=/coracle/bin/coracle-shim
export CORACLE_EXAMPLE=/coracle/bin/example CARGO_TARGET_DIR=/var/tmp/coracle CORACLE_TEST_PATIENCE=5
mkdir -p $CARGO_TARGET_DIR
echo "guest: $(uname -r), up for $(cut -d' ' -f1 /proc/uptime) s"
verdict=passed
while read -r program arguments; do
  echo "guest: $program $arguments"
  # shellcheck disable=SC2086
  if /coracle/tests/$program --color=never --test-threads=1 $arguments </dev/null; then
    echo "guest: $program passed"
  else
    echo "guest: $program failed"
    verdict=failed
  fi
done </coracle/list
echo "guest: verdict $verdict after $(cut -d' ' -f1 /proc/uptime) s"
