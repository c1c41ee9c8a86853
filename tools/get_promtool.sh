#!/bin/sh
# Puts promtool at $1, from Debian's package prometheus, which as a whole would start a server.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -qq update
apt-get -qq -o APT::Sandbox::User=root download prometheus
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
install -D usr/bin/promtool "$1"
