# shellcheck shell=bash
# Debian's packages: what is missing is installed, nothing is upgraded.

# From bookworm-backports: Debian 12's own QEMU is too old for the image tools beside it. The
# build of pileus-agent needs libvirt-dev and pkg-config, so cargo comes after the packages.
BACKPORTS=(libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu libvirt-dev
    qemu-system-x86 qemu-utils)
PACKAGES=(iputils-ping etcd-server etcd-client openvswitch-switch ovn-central ovn-host ethtool iproute2 openssl curl socat
    ca-certificates gcc libc6-dev make mmdebstrap busybox-static cpio dosfstools e2fsprogs procps util-linux python3 pkg-config)

# libvirt_headers: says what is missing before cargo's longer message does.
libvirt_headers() {
    pkg-config --exists 'libvirt >= 6.0.0' 2>/dev/null || {
        echo "pkg-config finds no libvirt 6.0 or newer, which the build of pileus-agent needs:" >&2
        echo "install libvirt-dev and pkg-config; \`hack/test packages\` does" >&2
        return 1
    }
}

# Adds the suite bookworm-backports to apt's sources. The stanza of the main suite is taken as
# the machine has it: addresses and keys stay its own.
apt_sources() {
    local dir=/etc/apt/sources.list.d stanza
    stanza="$(main_suite)"
    [ -n "$stanza" ] || {
        echo "the suite bookworm is in no file of $dir and not in /etc/apt/sources.list:" >&2
        echo "the lab needs Debian 12 (this is $(. /etc/os-release && echo "$PRETTY_NAME"))" >&2
        return 1
    }
    sed -E 's/^Types:.*/Types: deb/; s/^Suites:.*/Suites: bookworm-backports/' <<<"$stanza" |
        write_file "$dir/pileus-backports.sources"
}

# The stanza of the suite bookworm, from files of either format that apt reads.
main_suite() {
    local found
    found="$(find /etc/apt/sources.list.d -name '*.sources' ! -name 'pileus-*' -exec \
        awk 'BEGIN { RS = "" } /(^|\n)Suites:[^\n]*bookworm([ \n]|$)/ && /(^|\n)Types:[^\n]*deb/ { print; exit }' {} \;)"
    if [ -n "$found" ]; then
        # Of two such files the first stanza will do.
        awk 'BEGIN { RS = "" } { print; exit }' <<<"$found"
        return
    fi
    # deb [options] ADDRESS SUITE COMPONENTS…
    find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' -exec cat {} + 2>/dev/null |
        sed -E 's/^deb +\[[^]]*\]/deb/' |
        awk '$1 == "deb" && $3 == "bookworm" {
            printf "Types: deb\nURIs: %s\nSuites: bookworm\nComponents:", $2
            for (i = 4; i <= NF; i++) printf " %s", $i
            printf "\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
            exit
        }'
}

missing() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}

# Waits for another apt instead of failing beside it.
apt() { apt-get -o DPkg::Lock::Timeout=600 -q -y "$@"; }

packages() {
    local wanted backports
    export DEBIAN_FRONTEND=noninteractive
    mapfile -t wanted < <(missing "${PACKAGES[@]}" "$@")
    mapfile -t backports < <(missing "${BACKPORTS[@]}")
    if [ "${#wanted[@]}" = 0 ] && [ "${#backports[@]}" = 0 ]; then
        echo "all packages are there"
        return
    fi
    apt_sources
    apt update
    # Daemons belong to the lab's hosts: none is to start by being installed. The mark tells
    # a file that a killed run left here from one that somebody wants.
    local policy=/usr/sbin/policy-rc.d made=""
    if [ ! -e "$policy" ] || grep -q 'made by hack/devstack' "$policy"; then
        printf '#!/bin/sh\n# made by hack/devstack\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=1
    fi
    local status=0
    {
        # Debian 12's own first: beside a library of the backports some would be refused (curl).
        { [ "${#wanted[@]}" = 0 ] || apt install "${wanted[@]}"; } &&
            { [ "${#backports[@]}" = 0 ] || apt install -t bookworm-backports "${backports[@]}"; }
    } || status=$?
    [ -z "$made" ] || rm -f "$policy"
    # Nor at the next boot of the machine; libvirt-guests would even start and stop VMs.
    if [ -d /run/systemd/system ]; then
        local unit
        for unit in libvirt-guests libvirtd openvswitch-switch ovn-central ovn-host etcd; do
            systemctl disable --now "$unit.service" 2>/dev/null || true
        done
    fi
    return "$status"
}

# Without what it recommends: a compiler, and more.
pip_install() { command -v pip3 >/dev/null || apt install --no-install-recommends python3-pip; }
