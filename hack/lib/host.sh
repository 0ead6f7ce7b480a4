# shellcheck shell=bash
# A whole host: all its daemons, started, stopped, rebooted, cut off.

host_daemons_start() {
    local n="$1"
    host_namespaces "$n"
    ovs_database "$n"
    ovs_switch "$n"
    ovn_controller "$n"
    libvirt_daemon "$n"
}

# As after the power button: a new boot id, nothing of the old boot runs.
host_stop() {
    local n="$1"
    host_kill_all "$n"
    # What a boot clears: everything below /run, and the links of dead processes.
    in_host "$n" find /run -mindepth 1 -delete 2>/dev/null || true
}

host_boot() {
    local n="$1"
    host_daemons_start "$n"
    agent_start "$n"
}

host_reboot() {
    host_stop "$1"
    host_new_boot_id "$1"
    host_boot "$1"
}

# Removes a host with everything in it.
host_remove() {
    local n="$1"
    # QEMU lives on when a killed run took the anchor; the network namespace still finds it.
    if [ -e "/run/netns/$(host_netns "$n")" ]; then host_kill_all "$n"; fi
    proc_kill "$(host_name "$n")"
    ip link delete "$(host_veth "$n")" 2>/dev/null || true
    ip netns delete "$(host_netns "$n")" 2>/dev/null || true
}
