#!/usr/bin/env bash
# Fetches the lists of this machine's package sources for an apt that neither needs root nor changes the machine, because
# it has a folder of its own for all that it remembers, and knows of no package that is installed:
#   private_apt.sh FOLDER ARCHITECTURE
# Afterwards APT_CONFIG=FOLDER/conf in the environment of apt-get or apt-cache makes it that one. What apt printed is in
# FOLDER.log.
set -euo pipefail
folder=$(realpath -m "$1")
rm -rf "$folder"
mkdir -p "$folder/lists/partial" "$folder/archives/partial"
: >"$folder/status"
cat >"$folder/conf" <<CONF
APT::Architecture "$2";
APT::Architectures { "$2"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Dir::State "$folder";
Dir::State::status "$folder/status";
Dir::Cache "$folder";
CONF
APT_CONFIG=$folder/conf apt-get -q update >"$folder.log" 2>&1
