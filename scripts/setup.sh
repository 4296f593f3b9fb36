#!/usr/bin/env bash
# Installs what `make lab` and `make test` need on a fresh Debian or Ubuntu machine, and nothing twice.
#   scripts/setup.sh lab     the operator's command and what the lab boots from
#   scripts/setup.sh test    also what the tests run against
#   scripts/setup.sh vm      also QEMU
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=${1:?usage: scripts/setup.sh lab|test|vm}

die() {
    printf '%s\n' "$@" >&2
    exit 6
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Debian packages that are missing; the list is asked once, not per package.
packages() {
    local wanted=(mmdebstrap openssh-client iptables python3-venv ca-certificates)
    command -v dockerd >/dev/null || wanted+=(docker.io)
    if [ "$purpose" = vm ]; then wanted+=(qemu-system-x86 qemu-utils e2fsprogs); fi
    if [ "$purpose" != lab ]; then
        # Real counterparts for the tests: a cache, a decoder, a monitor, a phonemiser in a process of its own. gcc builds
        # what plays NVIDIA's library (tests/fake_nvml).
        wanted+=(gcc libc6-dev age redis-server ffmpeg prometheus prometheus-alertmanager espeak-ng nginx-light nmap openssl curl
            chromium chromium-driver wrk)
    fi
    local missing=()
    for name in "${wanted[@]}"; do
        dpkg-query -W -f='${Status}\n' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || die "This machine has no apt-get." "Set-up runs on Debian 12 and Ubuntu 22.04 or 24.04."
    echo "Installing Debian packages: ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A Python that both lock files know; Ubuntu 22.04 has 3.11 beside its own 3.10.
python() {
    for candidate in python3.11 python3.12 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3.11 python3.11-venv >/dev/null \
        || die "No Python 3.11 or 3.12 is to be had." "Install python3.11 and python3.11-venv and run again."
    echo python3.11
}

# A virtual environment that holds exactly what lock files say; made anew when they change.
environment() {
    local folder=$1 mark options=()
    shift
    mark=$folder/.$(cat "$@" | sha256sum | cut -c1-16)
    [ -e "$mark" ] && return
    echo "Making $folder from $*"
    for lock in "$@"; do options+=(-r "$lock"); done
    rm -rf "$folder"
    "$(python)" -m venv "$folder"
    # The CPU build of torch, a tenth of the size, is on PyTorch's own index alone. Where that cannot be reached, pip
    # looks in the places that it is configured for; the hash in the lock holds for all of them.
    if curl --silent --fail --head --max-time 5 --output /dev/null https://download.pytorch.org/whl/cpu/; then
        options+=(--extra-index-url https://download.pytorch.org/whl/cpu)
    fi
    "$folder/bin/pip" install --quiet --disable-pip-version-check --require-hashes "${options[@]}" \
        || die "pip could not install $*." \
            "Behind a TLS-inspecting proxy, point PIP_CERT at its authority (or add it to /usr/local/share/ca-certificates and run update-ca-certificates)."
    touch "$mark"
}

# Our own packages lie in the work tree; a .pth file is all that an editable install would do, and needs no build.
link() {
    local folder=$1 source=$2 site
    site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$source" >"$site/maya1_fleet.pth"
}

command_line() {
    cat >.venv/bin/mayafleet <<EOF
#!$PWD/.venv/bin/python
import sys
from mayafleet.cli import main
sys.exit(main())
EOF
    chmod +x .venv/bin/mayafleet
}

packages
if [ "$purpose" != lab ]; then
    environment .venv requirements-test.lock
    environment .venv-inference inference/requirements-maya1-cpu.lock inference/requirements-test.lock
    link .venv-inference "$PWD/inference"
elif [ ! -x .venv/bin/ansible-lint ]; then
    environment .venv requirements.lock
fi
link .venv "$PWD"
command_line
