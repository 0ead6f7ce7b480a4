# shellcheck shell=bash
# Hosts on one machine: a network namespace, private mounts and a host name each, wired
# to one Linux bridge. Nothing is routed or translated to the machine's own interface.

host_netns() { echo "pileus-host$1"; }
host_veth() { echo "plhost$1"; }
host_dir() { echo "$STATE_DIR/hosts/$(host_name "$1")"; }
host_run_dir() { echo "$RUN_DIR/hosts/$(host_name "$1")"; }

# The directories a host has to itself: SOURCE below its state directory, and TARGET.
HOST_MOUNTS=(
    "etc-libvirt:/etc/libvirt" "lib-libvirt:/var/lib/libvirt" "log-libvirt:/var/log/libvirt"
    "cache-libvirt:/var/cache/libvirt" "etc-openvswitch:/etc/openvswitch"
    "lib-openvswitch:/var/lib/openvswitch" "log-openvswitch:/var/log/openvswitch"
    "etc-ovn:/etc/ovn" "lib-ovn:/var/lib/ovn" "log-ovn:/var/log/ovn" "lib-pileus:/var/lib/pileus"
)

LAB_CLAIM=/run/pileus-devstack.lab

# Keeps one lab on the machine: the address plan and the names are fixed.
lab_refuse_second() {
    local pid start owner
    if [ -r "$LAB_CLAIM" ] && read -r pid start owner <"$LAB_CLAIM" && [ "$owner" != "$STATE_DIR" ] &&
        [ "$(proc_start_time "$pid")" = "$start" ]; then
        die "another lab runs on this machine (pid $pid, state in $owner). Remove it first: PILEUS_STATE_DIR=$owner hack/devstack down"
    fi
}

lab_claim() {
    local pid start
    lab_refuse_second
    # A directory that is somebody else's is not to be filled, and not to be removed later.
    if [ -d "$STATE_DIR" ] && [ ! -e "$STATE_DIR/.pileus-devstack" ] && [ ! -d "$STATE_DIR/hosts" ] &&
        [ -n "$(ls -A "$STATE_DIR")" ]; then
        die "$STATE_DIR is not empty and not a lab's: give another one in PILEUS_STATE_DIR"
    fi
    mkdir -p "$STATE_DIR/hosts" "$RUN_DIR" "$LOG_DIR"
    touch "$STATE_DIR/.pileus-devstack"
    chmod 0711 "$STATE_DIR" "$RUN_DIR"
    proc_start lab sleep infinity
    read -r pid start <"$PROC_DIR/lab"
    echo "$pid $start $STATE_DIR" >"$LAB_CLAIM"
}

lab_release() {
    local pid start owner
    if [ -r "$LAB_CLAIM" ] && read -r pid start owner <"$LAB_CLAIM" && [ "$owner" = "$STATE_DIR" ]; then
        rm -f "$LAB_CLAIM"
    fi
    proc_stop lab
}

lab_bridge() {
    if ! ip link show "$LAB_BRIDGE" >/dev/null 2>&1; then
        ip link add "$LAB_BRIDGE" type bridge
        ip link set "$LAB_BRIDGE" alias "pileus-devstack $STATE_DIR"
    fi
    ip addr replace "$LAB_ADDRESS/24" dev "$LAB_BRIDGE"
    ip link set "$LAB_BRIDGE" up
    no_checksum_offload "$LAB_BRIDGE"
}

# Packets that enter a userspace bridge with half a checksum are dropped by the receiver.
no_checksum_offload() { ethtool -K "$1" tx off >/dev/null; }

# Makes the namespaces and the cable of a host; everything else lives inside them.
host_namespaces() {
    local n="$1" name dir run mount
    name="$(host_name "$n")" dir="$(host_dir "$n")" run="$(host_run_dir "$n")"
    mkdir -p "$run/run/lock" "$dir"
    for mount in "${HOST_MOUNTS[@]}"; do mkdir -p "$dir/${mount%%:*}" "${mount#*:}"; done
    [ -s "$dir/boot-id" ] || host_new_boot_id "$n"
    [ -s "$dir/uuid" ] || cat /proc/sys/kernel/random/uuid >"$dir/uuid"
    [ -e "/run/netns/$(host_netns "$n")" ] || ip netns add "$(host_netns "$n")"
    if ! ip link show "$(host_veth "$n")" >/dev/null 2>&1; then
        ip link add "$(host_veth "$n")" type veth peer name eth0 netns "$(host_netns "$n")"
        ip link set "$(host_veth "$n")" alias "pileus-devstack $STATE_DIR"
    fi
    ip link set "$(host_veth "$n")" master "$LAB_BRIDGE" up
    no_checksum_offload "$(host_veth "$n")"
    ip -n "$(host_netns "$n")" link set lo up
    ip -n "$(host_netns "$n")" link set eth0 up
    if ! proc_alive "$name"; then
        rm -f "$dir/mounted"
        # The anchor holds the mount namespace for as long as the host exists.
        proc_start "$name" ip netns exec "$(host_netns "$n")" \
            unshare --mount --uts --propagation private \
            bash "$REPO_DIR/hack/lib/host-anchor" "$name" "$dir" "$run/run" "${HOST_MOUNTS[@]}"
    fi
    proc_wait "$name" 10 test -e "$dir/mounted"
    in_host "$n" ethtool -K eth0 tx off >/dev/null
}

host_new_boot_id() {
    # In place: the agent may hold the file open.
    cat /proc/sys/kernel/random/uuid >"$(host_dir "$1")/boot-id"
}

# Runs a command inside a host: in_host N COMMAND…
in_host() {
    local pid
    pid="$(proc_pid "$(host_name "$1")")" || {
        echo "$(host_name "$1") is not up" >&2
        return 1
    }
    shift
    nsenter --target "$pid" --mount --net --uts -- "$@"
}

# As proc_start, inside a host: host_start N NAME COMMAND…; the process is called hostN-NAME.
host_start() { host_run proc_start "$@"; }

# As proc_supervise, inside a host.
host_supervise() { host_run proc_supervise "$@"; }

# host_run STARTER N NAME COMMAND…
host_run() {
    local starter="$1" n="$2" name="$3" pid
    pid="$(proc_pid "$(host_name "$n")")" || {
        echo "$(host_name "$n") is not up" >&2
        return 1
    }
    shift 3
    "$starter" "$(host_name "$n")-$name" nsenter --target "$pid" --mount --net --uts -- "$@"
}

# Ends every process in the host's network namespace but its anchor: daemons, QEMU, all.
host_kill_all() {
    local n="$1" anchor pid left=1 supervised
    # Outside the host, where it would start an agent in the middle of this.
    for supervised in "$SUPERVISE_DIR/$(host_name "$n")"-*; do
        [ ! -e "$supervised" ] || proc_kill "${supervised##*/}"
    done
    anchor="$(proc_pid "$(host_name "$n")" || true)"
    while [ "$left" -gt 0 ]; do
        left=0
        for pid in $(ip netns pids "$(host_netns "$n")" 2>/dev/null); do
            [ "$pid" = "$anchor" ] && continue
            proc_start_time "$pid" >/dev/null || continue
            kill -KILL "$pid" 2>/dev/null || true
            left=$((left + 1))
        done
        [ "$left" = 0 ] || sleep 0.05
    done
    rm -f "$PROC_DIR/$(host_name "$n")"-*
}

# A cut cable: the host lives on and hears nothing.
host_cut() { ip link set "$(host_veth "$1")" down; }
host_heal() { ip link set "$(host_veth "$1")" up; }
