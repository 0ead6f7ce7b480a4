# shellcheck shell=bash
# The first two servers, and what they say.

# Built or found; what it is goes to a file for quickstart_image.
guest_image() {
    PILEUS_CACHE="$CACHE_DIR" "$REPO_DIR/hack/guest-image" tiny >"$STATE_DIR/guest-image.new"
    mv "$STATE_DIR/guest-image.new" "$STATE_DIR/guest-image"
}

quickstart_image() {
    local line disk="" sum=""
    while IFS= read -r line; do
        case "$line" in
        tiny.disk=*) disk="${line#*=}" ;;
        tiny.disk.sha256=*) sum="${line#*=}" ;;
        esac
    done <"$STATE_DIR/guest-image"
    [ -n "$disk" ] && [ -n "$sum" ] || {
        echo "hack/guest-image gave no disk" >&2
        return 1
    }
    # An Image cannot be changed: a newer build of the guest is a new Image.
    local now
    now="$(kube get image tiny -o 'jsonpath={.spec.source.checksum}' 2>/dev/null || true)"
    if [ -n "$now" ] && [ "$now" != "sha256:$sum" ]; then
        echo "the Image tiny is of an older build and is kept"
        return
    fi
    apply_marked <<YAML
apiVersion: pileus.dev/v1alpha1
kind: Image
metadata: {name: tiny, namespace: default}
spec:
  source: {url: "file://$disk", checksum: "sha256:$sum"}
  diskFormat: qcow2
  minMemory: 96Mi
  properties: {architecture: x86_64, os_distro: debian}
  sharedWith: {namespaces: ["*"]}
YAML
}

quickstart_apply() { apply_marked --namespace default <"$REPO_DIR/config/samples/quickstart.yaml"; }

quickstart_wait() {
    kube wait --for=condition=Ready --timeout=180s server/one server/two && return
    kube get servers,instances,ports -A -o wide
    kube describe servers
    return 1
}

# console SERVER [NAMESPACE]: what the guest has said so far.
console() {
    local server="$1" namespace="${2:-default}" host id
    host="$(kube -n "$namespace" get server "$server" -o 'jsonpath={.status.placement.host}')"
    id="$(kube -n "$namespace" get server "$server" -o 'jsonpath={.status.instanceID}')"
    in_host "${host#host}" cat "/var/lib/pileus/instances/$id/console.log"
}

quickstart_said() { console "$1" | tr -d '\r' | grep -aq "$2"; }

quickstart_console() {
    wait_for 60 "the user data of server one" quickstart_said one 'hello from one'
    wait_for 60 "the ping from two to one" quickstart_said two 'bytes from 10.10.0.11'
}

quickstart_show() {
    local server
    say
    say "\$ kubectl get servers -o wide"
    kube get servers -o wide
    for server in one two; do
        say
        say "The console of $server:"
        console "$server" | tr -d '\r' | grep -aE 'PILEUS-GUEST: (hostname|address|user-data|ready)|hello from|bytes from|packet loss' |
            sed 's/^/    /'
    done
    cat <<TXT

Try next:
    eval "\$(hack/devstack env)"
    kubectl describe server one
    kubectl patch server one --type merge -p '{"spec":{"runState":"Stopped"}}' && kubectl get servers -w
TXT
}
