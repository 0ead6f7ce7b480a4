# shellcheck shell=bash
# A libvirt of its own in every host: own configuration, own uuid, no default network.

libvirt_config() {
    local n="$1" etc
    etc="$(host_dir "$n")/etc-libvirt"
    mkdir -p "$etc/qemu/networks" "$etc/nwfilter"
    # libvirt refuses to migrate between hosts of the same uuid.
    write_file "$etc/libvirtd.conf" <<CONF
host_uuid = "$(cat "$(host_dir "$n")/uuid")"
auth_unix_ro = "none"
auth_unix_rw = "none"
max_clients = 200
max_workers = 40
log_outputs = "2:stderr"
CONF
    # Private mounts and AppArmor's path rules do not go together; the lab has no secrets.
    write_file "$etc/qemu.conf" <<'CONF'
security_driver = "none"
max_core = 0
CONF
    write_file "$etc/virtlogd.conf" <<'CONF'
log_outputs = "2:stderr"
max_size = 2097152
max_backups = 3
CONF
    write_file "$etc/libvirt.conf" <<<'uri_default = "qemu:///system"'
    # The user that runs QEMU must get at its own directory; the package made it so.
    local owned
    for owned in qemu boot images; do mkdir -p "$(host_dir "$n")/lib-libvirt/$owned"; done
    chown libvirt-qemu:kvm "$(host_dir "$n")/lib-libvirt/qemu"
    chmod 0711 "$(host_dir "$n")/lib-libvirt" "$(host_dir "$n")/lib-pileus"
}

libvirt_virtlogd() {
    local n="$1"
    libvirt_config "$n"
    if ! proc_alive "$(host_name "$n")-virtlogd"; then
        in_host "$n" mkdir -p /run/libvirt
        host_start "$n" virtlogd virtlogd
    fi
    proc_wait "$(host_name "$n")-virtlogd" 10 in_host "$n" test -S /run/libvirt/virtlogd-sock
}

libvirt_daemon() {
    local n="$1"
    libvirt_virtlogd "$n"
    host_start "$n" libvirtd libvirtd
    proc_wait "$(host_name "$n")-libvirtd" 60 in_host "$n" virsh -c qemu:///system list
}
