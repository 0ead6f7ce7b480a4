# shellcheck shell=bash
# Where things are, how a script speaks to a person, and how it stops.

REPO_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

# What must survive a reboot of the machine, and what must not.
STATE_DIR="${PILEUS_STATE_DIR:-/var/lib/pileus-devstack}"
RUN_DIR="${PILEUS_RUN_DIR:-/run/pileus-devstack}"
# What is expensive to make and the same for every lab on this machine.
CACHE_DIR="${PILEUS_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pileus}"
LOG_DIR="$STATE_DIR/log"

# Names and addresses of the lab. The addresses come from a documentation range (RFC 5737):
# the first that the machine itself has no route to; a lab keeps the one it began with.
LAB_BRIDGE="pileus-lab"
lab_prefix() {
    local prefix
    if [ -r "$STATE_DIR/prefix" ]; then
        cat "$STATE_DIR/prefix"
        return
    fi
    for prefix in 198.51.100 203.0.113 192.0.2; do
        if ! ip -4 route show 2>/dev/null | grep -v "dev $LAB_BRIDGE" | grep -qF "$prefix."; then
            echo "$prefix"
            return
        fi
    done
    echo "this machine uses all documentation ranges (RFC 5737); the lab needs one" >&2
    return 1
}
LAB_PREFIX="$(lab_prefix)"
LAB_ADDRESS="$LAB_PREFIX.1"
API_PORT=6443
API_URL="https://$LAB_ADDRESS:$API_PORT"
# A proxy of the machine leads nowhere in the lab.
export NO_PROXY="${NO_PROXY:+$NO_PROXY,}$LAB_ADDRESS,127.0.0.1"
export no_proxy="$NO_PROXY"
ADMIN_KUBECONFIG="$STATE_DIR/kubeconfig/admin"
SYSTEM_NAMESPACE="pileus-system"
# Two hosts fit into a small machine; the address plan would take 200.
MAX_HOSTS=16

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'devstack: %s\n' "$*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "network namespaces and libvirt need root. Run it again with sudo"
}

# Waits until a command succeeds: wait_for SECONDS WHAT COMMAND…
wait_for() {
    local seconds="$1" what="$2" end
    shift 2
    end=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            echo "$what: not there after $seconds s" >&2
            return 1
        fi
        sleep 0.1
    done
}

# Writes standard input to a file only when that changes it, in one step.
write_file() {
    local path="$1" mode="${2:-0644}" new
    new="$(mktemp "$path.XXXXXX")"
    cat >"$new"
    if cmp -s "$new" "$path"; then
        rm -f "$new"
    else
        chmod "$mode" "$new"
        mv -f "$new" "$path"
    fi
}

host_name() { echo "host$1"; }
host_address() { echo "$LAB_PREFIX.$((10 + $1))"; }
# The hosts this lab was made with, one number a line.
host_numbers() {
    local count=0
    [ -r "$STATE_DIR/hosts/count" ] && count="$(cat "$STATE_DIR/hosts/count")"
    seq 1 "$count"
}

# Accepts `2` and `host2`; dies with the hosts there are.
parse_host() {
    local number="${1#host}"
    if [[ "$number" =~ ^[0-9]+$ ]] && host_numbers | grep -qx "$number"; then
        echo "$number"
        return
    fi
    die "there is no host \"$1\" in this lab; hosts: $(host_numbers | tr '\n' ' ')"
}
