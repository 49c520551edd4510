#!/bin/sh
# Install Debian packages that tests run against, where that can be done; elsewhere say which are missing: the tests that
# need them skip, each with a line that says so.
#   tests/packages.sh PACKAGE ...
missing=""
for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing"
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "not installed, so the tests that need them are skipped:$missing"
