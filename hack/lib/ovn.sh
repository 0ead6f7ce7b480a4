# shellcheck shell=bash
# OVN's central databases and northd beside the API server, and Open vSwitch with
# ovn-controller in every host. Userspace datapath: no kernel module is needed.

OVN_RUN_DIR="$RUN_DIR/ovn"
OVN_STATE_DIR="$STATE_DIR/ovn"
OVN_NB="unix:$OVN_RUN_DIR/ovnnb_db.sock"
OVN_SB="unix:$OVN_RUN_DIR/ovnsb_db.sock"
# OVN has an authority of its own: who may speak to its databases is no matter of the API server's.
OVN_PKI_DIR="$STATE_DIR/ovn-pki"
OVN_SB_SSL="ssl:$LAB_ADDRESS:6642"
OVS_SCHEMA=/usr/share/openvswitch/vswitch.ovsschema

# Creates a database file, or converts it to the schema of the installed version.
ovsdb_file() {
    if [ ! -s "$1" ]; then
        rm -f "$1"
        ovsdb-tool create "$1" "$2"
    elif [ "$(ovsdb-tool needs-conversion "$1" "$2")" = yes ]; then
        ovsdb-tool convert "$1" "$2"
    fi
}

# ovn_database nb|sb REMOTES…
ovn_database() {
    local db="$1" socket="$OVN_RUN_DIR/ovn${1}_db.sock"
    shift
    if proc_alive "ovn-$db"; then return; fi
    mkdir -p "$OVN_RUN_DIR" "$OVN_STATE_DIR"
    ovsdb_file "$OVN_STATE_DIR/$db.db" "/usr/share/ovn/ovn-$db.ovsschema"
    rm -f "$socket"
    proc_start "ovn-$db" ovsdb-server --unixctl="$OVN_RUN_DIR/ovn${db}_db.ctl" \
        --remote="punix:$socket" "$@" -vconsole:info -vsyslog:off "$OVN_STATE_DIR/$db.db"
    proc_wait "ovn-$db" 10 test -S "$socket"
}

# ovn_certificate NAME [SUBJECT_ALT_NAMES]
ovn_certificate() { PKI_DIR="$OVN_PKI_DIR" certificate "$1" "/CN=$1" "${2:-}"; }

# The files of a server or client as options of Open vSwitch's programs.
ovn_ssl_options() {
    printf '%s\n' "--private-key=$OVN_PKI_DIR/$1.key" "--certificate=$OVN_PKI_DIR/$1.crt" \
        "--ca-cert=$OVN_PKI_DIR/ca.crt"
}

# Hosts get the role that keeps each to its own rows, by the name in its certificate.
ovn_southbound_role() {
    local connection="pssl:6642:$LAB_ADDRESS"
    if ovn-sbctl --db="$OVN_SB" --timeout=5 get-connection | grep -q "role=.*$connection"; then return; fi
    ovn-sbctl --db="$OVN_SB" --timeout=5 set-connection role=ovn-controller "$connection"
}

# The northbound database is the manager's alone; hosts reach the southbound one.
ovn_central() {
    local ssl
    PKI_DIR="$OVN_PKI_DIR" authority pileus-devstack-ovn
    ovn_certificate nb "IP:$LAB_ADDRESS"
    ovn_certificate sb "IP:$LAB_ADDRESS"
    ovn_certificate manager
    mapfile -t ssl < <(ovn_ssl_options nb)
    ovn_database nb --remote="pssl:6641:$LAB_ADDRESS" "${ssl[@]}"
    mapfile -t ssl < <(ovn_ssl_options sb)
    ovn_database sb --remote=db:OVN_Southbound,SB_Global,connections "${ssl[@]}"
    ovn_southbound_role
    if ! proc_alive ovn-northd; then
        proc_start ovn-northd ovn-northd --ovnnb-db="$OVN_NB" --ovnsb-db="$OVN_SB" \
            --unixctl="$OVN_RUN_DIR/ovn-northd.ctl" -vconsole:info -vsyslog:off
    fi
    ovn-nbctl --db="$OVN_NB" --wait=none init
    proc_wait ovn-northd 10 ovn-nbctl --db="$OVN_NB" --timeout=5 --wait=sb sync
}

# The name in a host's certificate is that of its chassis.
ovn_host_certificate() {
    local n="$1" name file etc
    name="$(host_name "$n")" etc="$(host_dir "$n")/etc-openvswitch"
    ovn_certificate "$name"
    for file in "$name.key" "$name.crt" ca.crt; do
        install -m 0600 "$OVN_PKI_DIR/$file" "$etc/ovn-${file/#$name/host}"
    done
    in_host "$n" ovs-vsctl --no-wait set-ssl /etc/openvswitch/ovn-host.key \
        /etc/openvswitch/ovn-host.crt /etc/openvswitch/ovn-ca.crt
}

ovs_database() {
    local n="$1" name
    name="$(host_name "$n")-ovsdb"
    if proc_alive "$name"; then return; fi
    in_host "$n" mkdir -p /run/openvswitch /run/ovn
    ovsdb_file "$(host_dir "$n")/etc-openvswitch/conf.db" "$OVS_SCHEMA"
    in_host "$n" rm -f /run/openvswitch/db.sock
    host_start "$n" ovsdb ovsdb-server --unixctl=/run/openvswitch/ovsdb-server.ctl \
        --remote=punix:/run/openvswitch/db.sock -vconsole:info -vsyslog:off /etc/openvswitch/conf.db
    proc_wait "$name" 10 in_host "$n" test -S /run/openvswitch/db.sock
    in_host "$n" ovs-vsctl --no-wait init
    ovn_host_certificate "$n"
    in_host "$n" ovs-vsctl --no-wait set open_vswitch . \
        "external_ids:system-id=$(host_name "$n")" "external_ids:hostname=$(host_name "$n")" \
        "external_ids:ovn-remote=$OVN_SB_SSL" external_ids:ovn-encap-type=geneve \
        "external_ids:ovn-encap-ip=$(host_address "$n")" external_ids:ovn-bridge-datapath-type=netdev \
        external_ids:ovn-remote-probe-interval=5000 \
        -- --may-exist add-br br-ex -- set bridge br-ex datapath_type=netdev fail_mode=standalone \
        -- --may-exist add-port br-ex eth0
}

ovs_switch() {
    local n="$1" name
    name="$(host_name "$n")-vswitchd"
    if ! proc_alive "$name"; then
        host_start "$n" vswitchd ovs-vswitchd --unixctl=/run/openvswitch/ovs-vswitchd.ctl \
            --pidfile=/run/openvswitch/ovs-vswitchd.pid --overwrite-pidfile \
            -vconsole:info -vsyslog:off unix:/run/openvswitch/db.sock
    fi
    proc_wait "$name" 20 in_host "$n" ip link show br-ex
    # The device of a userspace bridge goes with ovs-vswitchd, and its address with it.
    in_host "$n" ip addr replace "$(host_address "$n")/24" dev br-ex
    in_host "$n" ip link set br-ex up
    in_host "$n" ethtool -K br-ex tx off >/dev/null
}

ovn_controller() {
    local n="$1" name
    name="$(host_name "$n")-ovn-controller"
    if ! proc_alive "$name"; then
        host_start "$n" ovn-controller ovn-controller \
            --pidfile=/run/ovn/ovn-controller.pid --overwrite-pidfile -vconsole:info -vsyslog:off \
            unix:/run/openvswitch/db.sock
    fi
    proc_wait "$name" 20 in_host "$n" ovs-vsctl br-exists br-int
}

# True when the southbound database knows the host as a chassis.
ovn_chassis_known() {
    [ -n "$(ovn-sbctl --db="$OVN_SB" --timeout=5 --bare --columns=name find chassis "name=$(host_name "$1")")" ]
}
