# shellcheck shell=bash
# etcd, kube-apiserver and kube-controller-manager of the lab's own.

PKI_DIR="$STATE_DIR/pki"

# certificate NAME SUBJECT [SUBJECT_ALT_NAMES]: signed by the lab's own authority.
certificate() {
    local name="$1" subject="$2" names="${3:-}"
    [ -s "$PKI_DIR/$name.crt" ] && return
    openssl req -new -newkey rsa:2048 -nodes -keyout "$PKI_DIR/$name.key" -subj "$subject" \
        -out "$PKI_DIR/$name.csr"
    # A serial number of its own, since several may be signed at the same time.
    openssl x509 -req -in "$PKI_DIR/$name.csr" -CA "$PKI_DIR/ca.crt" -CAkey "$PKI_DIR/ca.key" \
        -set_serial "0x$(openssl rand -hex 8)" -days 3650 -sha256 -out "$PKI_DIR/$name.crt.new" \
        -extfile <(printf 'extendedKeyUsage=clientAuth,serverAuth\n%s\n' "${names:+subjectAltName=$names}")
    mv "$PKI_DIR/$name.crt.new" "$PKI_DIR/$name.crt"
}

# The authority of PKI_DIR, by its name.
authority() {
    mkdir -p "$PKI_DIR"
    chmod 0700 "$PKI_DIR"
    [ ! -s "$PKI_DIR/ca.crt" ] || return 0
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=$1" \
        -keyout "$PKI_DIR/ca.key" -out "$PKI_DIR/ca.crt.new"
    mv "$PKI_DIR/ca.crt.new" "$PKI_DIR/ca.crt"
}

control_plane_pki() {
    authority pileus-devstack
    [ -s "$PKI_DIR/sa.key" ] || openssl genrsa -out "$PKI_DIR/sa.key" 2048
    certificate apiserver "/CN=kube-apiserver" "IP:$LAB_ADDRESS,IP:127.0.0.1,IP:10.96.0.1,DNS:localhost"
    certificate admin "/O=system:masters/CN=admin"
    # It removes what a namespace holds, whatever that is.
    certificate controller-manager "/O=system:masters/CN=system:kube-controller-manager"
    kubeconfig "$ADMIN_KUBECONFIG" certificate admin
    kubeconfig "$STATE_DIR/kubeconfig/controller-manager" certificate controller-manager
}

# kubeconfig FILE certificate NAME | token TOKEN [inside]: the last is for a role in a host.
kubeconfig() {
    local file="$1" user cluster
    cluster="$(cluster_stanza "${4:-}")"
    mkdir -p "$(dirname "$file")"
    if [ "$2" = certificate ]; then
        user="{client-certificate: $PKI_DIR/$3.crt, client-key: $PKI_DIR/$3.key}"
    else
        user="{token: $3}"
    fi
    write_file "$file" 0600 <<CONF
apiVersion: v1
kind: Config
current-context: pileus
clusters: [{name: pileus, cluster: $cluster}]
users: [{name: pileus, user: $user}]
contexts: [{name: pileus, context: {cluster: pileus, user: pileus}}]
CONF
}

etcd_start() {
    proc_start etcd etcd --name pileus --data-dir "$STATE_DIR/etcd" --log-level warn \
        --listen-client-urls http://127.0.0.1:23790 --advertise-client-urls http://127.0.0.1:23790 \
        --listen-peer-urls http://127.0.0.1:23800 --initial-advertise-peer-urls http://127.0.0.1:23800 \
        --initial-cluster pileus=http://127.0.0.1:23800 --auto-compaction-retention 1h \
        --quota-backend-bytes 2147483648
    proc_wait etcd 30 curl -fsS --noproxy '*' http://127.0.0.1:23790/health
}

apiserver_start() {
    local bin
    bin="$(control_plane_dir)"
    proc_start apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:23790 \
        --bind-address "$LAB_ADDRESS" --advertise-address "$LAB_ADDRESS" --secure-port "$API_PORT" \
        --tls-cert-file "$PKI_DIR/apiserver.crt" --tls-private-key-file "$PKI_DIR/apiserver.key" \
        --client-ca-file "$PKI_DIR/ca.crt" --authorization-mode RBAC --anonymous-auth=false \
        --service-account-key-file "$PKI_DIR/sa.key" --service-account-signing-key-file "$PKI_DIR/sa.key" \
        --service-account-issuer https://kubernetes.default.svc --service-cluster-ip-range 10.96.0.0/16 \
        --disable-admission-plugins ServiceAccount --event-ttl 1h --v 1
    proc_wait apiserver 60 kube get --raw /readyz
}

controller_manager_start() {
    local bin
    bin="$(control_plane_dir)"
    # Only what Pileus relies on: namespaces, garbage collection, service account tokens, roles
    # that others add to.
    proc_start controller-manager "$bin/kube-controller-manager" \
        --kubeconfig "$STATE_DIR/kubeconfig/controller-manager" --leader-elect=false \
        --service-account-private-key-file "$PKI_DIR/sa.key" --root-ca-file "$PKI_DIR/ca.crt" \
        --use-service-account-credentials=false \
        --controllers namespace-controller,garbage-collector-controller,serviceaccount-controller,serviceaccount-token-controller,clusterrole-aggregation-controller \
        --bind-address 127.0.0.1 --v 1
}

control_plane() {
    control_plane_pki
    etcd_start
    apiserver_start
    # A reading of the server's own view of who it is may come before its RBAC is there.
    wait_for 30 "the API server's own roles" kube get clusterrole system:kube-controller-manager
    controller_manager_start
}
