#!/bin/sh
# Copy the C++ headers of onnxruntime, which Python's wheel does not contain, to FOLDER:
#
#     scripts/onnxruntime_headers.sh FOLDER
#
# They come from Debian's package libonnxruntime-dev, which exists from Debian 13 (trixie) on; an older Debian downloads
# that release's package without installing it. The library itself is not needed.
set -eu
target=$1
test -e "$target/onnxruntime_cxx_api.h" && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mirror() {
	apt-get indextargets --format '$(SITE)' 'Identifier: Packages' | grep '/debian/*$' | head -n 1
}
site=$(mirror)
test -n "$site" || { apt-get -qq update || true; site=$(mirror); } # a new machine has no lists yet
test -n "$site" || { echo "apt-get has no mirror of Debian" >&2; exit 1; }
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/content" "$target"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${site%/} trixie main" > "$work/sources.list"
set -- -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
	-o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root
apt-get "$@" -qq update
(cd "$work" && apt-get "$@" -qq download libonnxruntime-dev)
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/content"
cp -r "$work/content/usr/include/onnxruntime/." "$target"
echo "wrote $target"
