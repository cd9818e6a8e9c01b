#!/bin/sh
# Unpack what a Debian package is made from: apt-source.sh PACKAGE FOLDER. The machine's own package
# sources are asked, with lists of their own in the folder: the machine's stay as they are.
set -eu
package=$1 folder=$2
mkdir -p "$folder/parts" "$folder/lists/partial" "$folder/source"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources; do
    # Below sources.list.d a file in the form of one line each has to be called .list.
    part=$folder/parts/$(basename "$file" | sed 's/^sources.list$/sources-list.list/')
    [ ! -f "$file" ] || sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$file" >"$part"
done
set -- -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$folder/parts" -o "Dir::State::lists=$folder/lists"
apt-get "$@" update
cd "$folder/source"
apt-get "$@" source --download-only "$package" 2>/dev/null
for archive in ./*.orig.tar.gz ./*.orig.tar.xz ./*.orig.tar.bz2; do
    [ ! -f "$archive" ] || tar --strip-components=1 -xf "$archive"
done
