# shellcheck shell=bash
# Pileus itself: built, installed, and its roles started, each with its own credential.

PILEUS_BIN="$STATE_DIR/bin/pileus"
AGENT_BIN="$STATE_DIR/bin/pileus-agent"

pileus_build() {
    if [ -n "${PILEUS_BINARY:-}" ]; then
        [ -x "$PILEUS_BINARY" ] || {
            echo "PILEUS_BINARY=$PILEUS_BINARY is no program" >&2
            return 1
        }
    else
        command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
        command -v cargo >/dev/null || {
            echo "cargo is missing: install Rust (rustup, or Debian's packages of version $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO_DIR/Cargo.toml") or newer)" >&2
            return 1
        }
        libvirt_headers || return 1
        # What cargo tells a test of its package would make some dependencies' build scripts run
        # anew, and with them everything be built again: once here, and once outside of tests.
        local own
        mapfile -t own < <(compgen -e | grep -E '^(CARGO_(PKG|MANIFEST|CRATE|BIN|PRIMARY)|OUT_DIR$)')
        (
            unset "${own[@]}"
            cd "$REPO_DIR" && cargo build --release --locked --bins
        )
        PILEUS_BINARY="${CARGO_TARGET_DIR:-$REPO_DIR/target}/release/pileus"
    fi
    mkdir -p "$STATE_DIR/bin"
    install_program "$PILEUS_BINARY" "$PILEUS_BIN"
    install_program "$(dirname "$PILEUS_BINARY")/pileus-agent" "$AGENT_BIN"
}

# install_program FROM TO: under a new inode, as the old one may be running.
install_program() {
    [ -x "$1" ] || {
        echo "$1 is no program; the programs pileus and pileus-agent lie side by side" >&2
        return 1
    }
    if cmp -s "$1" "$2"; then return; fi
    install -m 0755 "$1" "$2.new"
    mv "$2.new" "$2"
}

pileus_install() {
    local n file
    "$PILEUS_BIN" crds | apply_marked --server-side --force-conflicts
    # shellcheck disable=SC2046  # one word a kind
    kube wait --for=condition=Established --timeout=60s \
        $("$PILEUS_BIN" crds | sed -n 's/^  name: \(.*\.pileus\.dev\)$/crd\/\1/p')
    {
        printf 'apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n---\n' "$SYSTEM_NAMESPACE"
        for file in "$REPO_DIR"/config/rbac/{manager,scheduler,stacks,tenants}.yaml "$REPO_DIR"/config/admission/*.yaml; do
            cat "$file"
            echo "---"
        done
    } | apply_marked
    credential manager "$SYSTEM_NAMESPACE" manager
    credential scheduler "$SYSTEM_NAMESPACE" scheduler
    credential stacks "$SYSTEM_NAMESPACE" stacks
    opt_in default
    for n in $(host_numbers); do pileus_install_host "$n"; done
    apply_marked <"$REPO_DIR/config/flavors.yaml"
}

# opt_in NAMESPACE: Stacks are made real in it, and Servers take user data from its Secrets.
opt_in() {
    local role
    for role in stacks:pileus-stacks-tenant manager:pileus-user-data; do
        kube create rolebinding "${role#*:}" --namespace "$1" --clusterrole "${role#*:}" \
            --serviceaccount "$SYSTEM_NAMESPACE:${role%:*}" --dry-run=client -o yaml | apply_marked
    done
}

# The Host is the administrator's; the agent reports its status.
pileus_install_host() {
    local name
    name="$(host_name "$1")"
    sed "s/HOST/$name/g" "$REPO_DIR/config/rbac/agent.yaml" | apply_marked
    credential "agent-$name" "pileus-host-$name" agent inside
    apply_marked <<YAML
apiVersion: pileus.dev/v1alpha1
kind: Host
metadata: {name: $name, labels: {lab.pileus.dev/host: $name}}
spec: {}
YAML
}

# credential FILE NAMESPACE SERVICEACCOUNT [inside]: a kubeconfig with the account's own token.
credential() {
    local file="$STATE_DIR/kubeconfig/$1" token=""
    apply_marked <<YAML
apiVersion: v1
kind: ServiceAccount
metadata: {name: $3, namespace: $2}
---
apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata:
  name: $3-token
  namespace: $2
  annotations: {kubernetes.io/service-account.name: $3}
YAML
    local end=$((SECONDS + 30))
    until [ -n "$token" ]; do
        token="$(kube -n "$2" get secret "$3-token" -o 'jsonpath={.data.token}' | base64 -d)"
        [ -n "$token" ] || [ "$SECONDS" -lt "$end" ] || {
            echo "the Secret $2/$3-token has no token after 30 s: the controller manager fills it in$(cluster_foreign || echo ", see $LOG_DIR/controller-manager.log")" >&2
            return 1
        }
        [ -n "$token" ] || sleep 0.2
    done
    kubeconfig "$file" token "$token" "${4:-}"
}

# Ends a role that still runs an older build, so that its start takes the new one.
end_older_build() {
    local pid
    pid="$(proc_pid "$1")" || return 0
    [[ "$(readlink "/proc/$pid/exe")" != *"(deleted)" ]] || proc_stop "$1"
}

# The roles' client goes by these and knows no exceptions from them; nothing in the lab is
# behind a proxy.
NO_PROXIES=(-u HTTP_PROXY -u HTTPS_PROXY -u http_proxy -u https_proxy -u ALL_PROXY -u all_proxy)

manager_start() {
    end_older_build manager
    proc_supervise manager env "${NO_PROXIES[@]}" KUBECONFIG="$STATE_DIR/kubeconfig/manager" PILEUS_IDENTITY=devstack-manager RUST_LOG="${RUST_LOG:-info,kube=warn}" \
        "$PILEUS_BIN" manager --listen 127.0.0.1:28080 --ovn-nb "ssl:$LAB_ADDRESS:6641" --underlay-mtu 1500 \
        --ovn-nb-private-key "$OVN_PKI_DIR/manager.key" --ovn-nb-certificate "$OVN_PKI_DIR/manager.crt" \
        --ovn-nb-ca-cert "$OVN_PKI_DIR/ca.crt"
    proc_wait manager 20 curl -fsS --noproxy '*' http://127.0.0.1:28080/healthz
}

scheduler_start() {
    end_older_build scheduler
    proc_supervise scheduler env "${NO_PROXIES[@]}" KUBECONFIG="$STATE_DIR/kubeconfig/scheduler" PILEUS_IDENTITY=devstack-scheduler RUST_LOG="${RUST_LOG:-info,kube=warn}" \
        "$PILEUS_BIN" scheduler --listen 127.0.0.1:28081
    proc_wait scheduler 20 curl -fsS --noproxy '*' http://127.0.0.1:28081/healthz
}

stacks_start() {
    end_older_build stacks
    proc_supervise stacks env "${NO_PROXIES[@]}" KUBECONFIG="$STATE_DIR/kubeconfig/stacks" PILEUS_IDENTITY=devstack-stacks RUST_LOG="${RUST_LOG:-info,kube=warn}" \
        "$PILEUS_BIN" stacks --listen 127.0.0.1:28083
    proc_wait stacks 20 curl -fsS --noproxy '*' http://127.0.0.1:28083/healthz
}

# A role that runs is ready once it has what the API server has; whoever starts one in the middle of
# an outage waits for that elsewhere.
roles_ready() {
    proc_wait manager 30 curl -fsS --noproxy '*' http://127.0.0.1:28080/readyz
    proc_wait scheduler 30 curl -fsS --noproxy '*' http://127.0.0.1:28081/readyz
    proc_wait stacks 30 curl -fsS --noproxy '*' http://127.0.0.1:28083/readyz
}

# The lab's machine is shared by its hosts: each agent offers an equal part of the memory that it
# sees, so that together they do not promise more than there is.
agent_start() {
    local n="$1" name virt=qemu devices=() device
    # Nothing is offered before a Host's spec says so, and that is for who tries it.
    for device in /sys/bus/pci/devices/*; do
        [ ! -e "$device" ] || devices+=(--allow-pci-device "${device##*/}")
    done
    name="$(host_name "$n")"
    end_older_build "$name-agent"
    # A /dev/kvm that opens proves nothing: see whether the processor has the instructions.
    if grep -qE '^flags.*\b(vmx|svm)\b' /proc/cpuinfo && [ -w /dev/kvm ]; then virt=kvm; fi
    host_supervise "$n" agent env "${NO_PROXIES[@]}" KUBECONFIG="$STATE_DIR/kubeconfig/agent-$name" \
        RUST_LOG="${RUST_LOG:-info,kube=warn}" "$AGENT_BIN" --host-name "$name" \
        --state-dir /var/lib/pileus --listen 127.0.0.1:28082 --virt-type "${PILEUS_VIRT_TYPE:-$virt}" \
        --boot-id-file "$(host_dir "$n")/boot-id" --image-file-dir "$CACHE_DIR/guest" \
        --allow-fetch "$LAB_PREFIX.0/24" --reserved-memory-mib 4096 --memory-shared-by "$(host_numbers | wc -l)" --reserved-disk-gib 10 \
        --image-grace-seconds "${PILEUS_IMAGE_GRACE_SECONDS:-3600}" "${devices[@]}"
    # It is ready once its Host is registered.
    proc_wait "$name-agent" 20 in_host "$n" curl -fsS --noproxy '*' http://127.0.0.1:28082/healthz
}
