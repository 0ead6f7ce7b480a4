# shellcheck shell=bash
# The cluster that KUBECONFIG names. When it answers, the lab has no control plane of its own
# but uses that one for as long as it lives, marks all that it makes there, and takes away
# nothing else.

# uid of the cluster's kube-system, and its server as KUBECONFIG has it. Their directory is
# there when the lab uses such a cluster.
CLUSTER_DIR="$STATE_DIR/cluster"
# On every object that this lab makes in a cluster; the value is the lab's id.
MARK=pileus.dev/devstack

cluster_foreign() { [ -s "$CLUSTER_DIR/uid" ]; }

lab_id() {
    [ -s "$STATE_DIR/id" ] || cat /proc/sys/kernel/random/uuid >"$STATE_DIR/id"
    cat "$STATE_DIR/id"
}

# Applies what it reads, marked as this lab's: apply_marked [OPTIONS OF APPLY]
apply_marked() {
    command "$KUBECTL" label --local -f - -o json "$MARK=$(lab_id)" | kube apply "$@" -f -
}

# A field of the lab's kubeconfig: cluster_field certificate-authority-data
cluster_field() {
    command "$KUBECTL" --kubeconfig "$ADMIN_KUBECONFIG" config view --raw --minify \
        -o "jsonpath={.clusters[0].cluster.$1}"
}

# True when KUBECONFIG names something that is not this lab's own.
cluster_given() {
    [ -n "${KUBECONFIG:-}" ] || return 1
    [ "$(realpath -m -- "$KUBECONFIG")" != "$(realpath -m -- "$ADMIN_KUBECONFIG")" ]
}

# Decides whose control plane the lab uses. That stands until the lab is removed: its VMs
# belong to objects of that cluster. Runs in the program's own shell.
cluster_choose() {
    local config uid
    cluster_given || {
        if cluster_foreign; then say "  uses the cluster at $(cat "$CLUSTER_DIR/server"), as before"; fi
        return 0
    }
    mkdir -p "$STATE_DIR/kubeconfig"
    config="$STATE_DIR/kubeconfig/given"
    (umask 077 && : >"$config")
    if ! "$KUBECTL" config view --raw --flatten --minify >"$config" 2>"$config.said" ||
        ! uid="$(cluster_uid "$config" 2>"$config.said")"; then
        cluster_not_usable "$(sed 's/^[EW][0-9]\{4\}.*\] *//; s/^error: //i' "$config.said" | tail -n 1)"
        rm -f "$config" "$config.said"
        return
    fi
    rm -f "$config.said"
    # A copy of the lab's own kubeconfig.
    if [ -e "$PKI_DIR/ca.crt" ] && grep -q "server: $API_URL\$" "$config"; then
        rm -f "$config"
        return
    fi
    cluster_check "$config" "$uid"
    mkdir -p "$CLUSTER_DIR"
    mv "$config" "$ADMIN_KUBECONFIG"
    cluster_field server | write_file "$CLUSTER_DIR/server"
    # Last: from here on the lab is one of that cluster.
    write_file "$CLUSTER_DIR/uid" <<<"$uid"
    say "  uses the cluster of KUBECONFIG at $(cat "$CLUSTER_DIR/server")"
}

cluster_uid() {
    local said
    said="$("$KUBECTL" --kubeconfig "$1" --request-timeout=10s get --raw /api/v1/namespaces/kube-system)" || return 1
    sed -n 's/.*"uid": *"\([^"]*\)".*/\1/p' <<<"$said" | grep . || {
        echo "it answers, but not as a Kubernetes API server" >&2
        return 1
    }
}

# Without an answer the lab has a control plane of its own; an answer that shuts us out is a
# person's to mend.
cluster_not_usable() {
    local why="$1" file
    file="${KUBECONFIG%%:*}"
    [ -e "$file" ] || why="there is no file $file"
    case "$why" in
    *Unauthorized* | *Forbidden* | *forbidden* | *"logged in"*)
        die "the cluster of KUBECONFIG=$KUBECONFIG answers, but refuses its user: $why. Renew the credential, or unset KUBECONFIG for a control plane of the lab's own"
        ;;
    esac
    if cluster_foreign; then
        die "this lab uses the cluster at $(cat "$CLUSTER_DIR/server"), and the one of KUBECONFIG=$KUBECONFIG does not answer: $why. Start it, or remove the lab: hack/devstack down --force"
    fi
    warn "KUBECONFIG=$KUBECONFIG is not used, its cluster does not answer ($why): the lab gets a control plane of its own"
}

# Refuses a cluster that the lab cannot live in.
cluster_check() {
    local config="$1" uid="$2" server minor given=("$KUBECTL" --kubeconfig "$1")
    server="$("${given[@]}" config view --raw -o 'jsonpath={.clusters[0].cluster.server}')"
    if cluster_foreign; then
        [ "$uid" = "$(cat "$CLUSTER_DIR/uid")" ] ||
            die "KUBECONFIG names the cluster at $server, this lab belongs to another one, at $(cat "$CLUSTER_DIR/server"). Name that one, or remove the lab first: hack/devstack down --force"
    elif [ -e "$PKI_DIR/ca.crt" ]; then
        die "this lab has a control plane of its own, and KUBECONFIG names the cluster at $server. Unset KUBECONFIG to go on with the lab, or remove it first: hack/devstack down"
    fi
    [ -z "$("${given[@]}" config view --raw -o 'jsonpath={.clusters[0].cluster.proxy-url}')" ] ||
        die "KUBECONFIG reaches its cluster through a proxy (proxy-url); the lab's hosts cannot. Unset KUBECONFIG for a control plane of the lab's own"
    [[ "$server" == https://* ]] ||
        die "KUBECONFIG reaches its cluster at $server, without TLS: the roles' tokens would travel in the open. Give an https:// address, or unset KUBECONFIG"
    minor="$("${given[@]}" get --raw /version | sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p')"
    # A build of somebody's own may not say what it is.
    [ "${minor:-$KUBERNETES_MINOR}" -ge "$KUBERNETES_MINOR" ] ||
        die "the cluster of KUBECONFIG at $server is Kubernetes 1.$minor; Pileus supports 1.$KUBERNETES_MINOR to the newest, and is tested with $(go_tool_version kubernetes k8s.io/kubernetes). Upgrade the cluster, name another one, or unset KUBECONFIG for a control plane of the lab's own"
    [ "$("${given[@]}" auth can-i '*' '*' --all-namespaces 2>/dev/null)" = yes ] ||
        die "the user of KUBECONFIG is no administrator of the cluster at $server; devstack makes kinds, namespaces and roles there. Use another user, or unset KUBECONFIG"
    cluster_check_owner "${given[@]}"
}

# A second Pileus in one cluster would take over the first one's Servers. The namespace is made
# before anything else, and whoever makes it has the cluster.
cluster_check_owner() {
    local found
    found="$("$@" get customresourcedefinitions,namespaces,clusterroles,clusterrolebindings \
        -l "$MARK!=$(lab_id)" --no-headers \
        -o 'custom-columns=KIND:.kind,NAME:.metadata.name,MARK:.metadata.labels.pileus\.dev/devstack' |
        awk '($1 == "CustomResourceDefinition" && $2 ~ /\.pileus\.dev$/) || $2 ~ /^pileus-(system|manager|scheduler|stacks|host-host[0-9]+|agent-host[0-9]+)$/ { print $1 " " $2 }')"
    [ -z "$found" ] ||
        die "the cluster of KUBECONFIG has Pileus already, and not from this lab: $(head -n 3 <<<"$found" | paste -sd, | sed 's/,/, /g')$(awk 'END { if (NR > 3) printf " and %d more", NR - 3 }' <<<"$found"). Take that away first, name another cluster, or unset KUBECONFIG"
    "$@" create -f - >/dev/null 2>&1 <<YAML || cluster_owner_is_us "$@"
apiVersion: v1
kind: Namespace
metadata: {name: $SYSTEM_NAMESPACE, labels: {$MARK: "$(lab_id)"}}
YAML
}

cluster_owner_is_us() {
    [ "$("$@" get namespace "$SYSTEM_NAMESPACE" -o "jsonpath={.metadata.labels.pileus\.dev/devstack}")" = "$(lab_id)" ] ||
        die "the namespace $SYSTEM_NAMESPACE could not be made in the cluster of KUBECONFIG, or another lab was faster"
}

# The part of a kubeconfig that says where the API server is: cluster_stanza [inside]. Inside a
# host it is the lab's own address, from which cluster_forward goes on; who answers there still
# has to prove the name that KUBECONFIG expects.
cluster_stanza() {
    local server authority name insecure
    if ! cluster_foreign; then
        echo "{server: \"$API_URL\", certificate-authority: $PKI_DIR/ca.crt}"
        return
    fi
    server="$(cat "$CLUSTER_DIR/server")"
    authority="$(cluster_field certificate-authority-data)"
    name="$(cluster_field tls-server-name)"
    insecure="$(cluster_field insecure-skip-tls-verify)"
    if [ "${1:-}" = inside ]; then
        cluster_address "$server"
        name="${name:-${CLUSTER_HOST//[\[\]]/}}"
        server="$API_URL$CLUSTER_PATH"
    fi
    echo "{server: \"$server\"${authority:+, certificate-authority-data: $authority}${name:+, tls-server-name: \"$name\"}${insecure:+, insecure-skip-tls-verify: $insecure}}"
}

# cluster_address URL: sets CLUSTER_HOST (an IPv6 address in brackets), CLUSTER_PORT, CLUSTER_PATH.
cluster_address() {
    [[ "$1" =~ ^https://(\[[^]]+\]|[^:/]+)(:([0-9]+))?(/.*)?$ ]] || {
        echo "the server of KUBECONFIG is no https:// address: $1" >&2
        return 1
    }
    CLUSTER_HOST="${BASH_REMATCH[1]}" CLUSTER_PORT="${BASH_REMATCH[3]:-443}" CLUSTER_PATH="${BASH_REMATCH[4]:-}"
    CLUSTER_PATH="${CLUSTER_PATH%/}"
}

# The hosts have no way out of the lab but this one, to one port of one machine.
cluster_forward() {
    cluster_address "$(cat "$CLUSTER_DIR/server")"
    proc_supervise api-forward socat "TCP-LISTEN:$API_PORT,bind=$LAB_ADDRESS,reuseaddr,keepalive,fork" \
        "TCP:$CLUSTER_HOST:$CLUSTER_PORT,keepalive"
    local through="$STATE_DIR/kubeconfig/through"
    (umask 077 && sed "s|^\( *server: \).*|\1$API_URL$CLUSTER_PATH|" "$ADMIN_KUBECONFIG" >"$through")
    [ -n "$(cluster_field tls-server-name)" ] ||
        "$KUBECTL" --kubeconfig "$through" config set-cluster \
            "$("$KUBECTL" --kubeconfig "$through" config view -o 'jsonpath={.clusters[0].name}')" \
            --tls-server-name "${CLUSTER_HOST//[\[\]]/}" >/dev/null
    proc_wait api-forward 20 "$KUBECTL" --kubeconfig "$through" --request-timeout=5s get --raw /version
    rm -f "$through"
}

cluster_answers() {
    [ "$(cluster_uid "$ADMIN_KUBECONFIG" 2>/dev/null)" = "$(cat "$CLUSTER_DIR/uid")" ]
}

# Kinds that people make, each after those that use it.
PEOPLES_KINDS=(stacks servers ports securitygrouprules securitygroups subnets networks images keypairs flavors)

# Objects of Pileus in the cluster that neither this lab nor its manager made.
cluster_others() {
    local kinds
    kinds="$(IFS=, && echo "${PEOPLES_KINDS[*]}")"
    kube get "$kinds" --all-namespaces -l "$MARK!=$(lab_id)" \
        -o 'jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.ownerReferences[0].kind}{"\n"}{end}' |
        awk '$3 == "" && !($1 == "SecurityGroup" && $2 ~ /\/default$/) { sub(/^\//, "", $2); print $1 " " $2 }'
}

cluster_kinds_there() { kube get customresourcedefinition servers.pileus.dev >/dev/null 2>&1; }

# First half of the removal, while the roles still run and can let go of their finalizers.
cluster_leave() {
    local force="$1" others kind end=$((SECONDS + 60))
    if ! cluster_answers; then
        [ -n "$force" ] || die "the cluster at $(cat "$CLUSTER_DIR/server") does not answer, and this lab's objects are in it. Start it and run this again; or \`hack/devstack down --force\` removes this machine's part only"
        warn "the cluster at $(cat "$CLUSTER_DIR/server") does not answer: only this machine's part is removed"
        return 0
    fi
    cluster_kinds_there || return 0
    others="$(cluster_others)"
    [ -z "$others" ] || [ -n "$force" ] ||
        die "in the cluster are objects of Pileus that devstack did not make; their VMs and kinds would go with the lab: $(head -n 5 <<<"$others" | paste -sd, | sed 's/,/, /g')$(awk 'END { if (NR > 5) printf " and %d more", NR - 5 }' <<<"$others"). Delete them first, or take them along: hack/devstack down --force"
    for kind in "${PEOPLES_KINDS[@]}"; do
        kube delete "$kind" --all --all-namespaces --wait=false >/dev/null
    done
    # Without a manager nobody lets go of them; cluster_forget does then.
    for kind in "${PEOPLES_KINDS[@]}"; do
        if [ "$SECONDS" -ge "$end" ] || ! proc_alive manager; then return 0; fi
        kube wait --for=delete "$kind" --all --all-namespaces --timeout="$((end - SECONDS))s" >/dev/null 2>&1 || true
    done
}

# Second half: no role runs any more, nothing of the lab's hosts is left.
cluster_forget() {
    local mark namespace kind name
    mark="$MARK=$(lab_id)"
    wait_for 30 "the API server" cluster_answers || {
        warn "what stays in the cluster: kubectl get crd,clusterrole,clusterrolebinding,namespace -l $mark"
        return 0
    }
    # What nobody is left to take care of: a role that did not run, or had no time.
    if cluster_kinds_there; then
        kube get "$(IFS=, && echo "${PEOPLES_KINDS[*]}"),instances,ipallocations,hosts" --all-namespaces \
            -o 'jsonpath={range .items[?(@.metadata.finalizers)]}{.kind} {.metadata.name} {.metadata.namespace}{"\n"}{end}' |
            while read -r kind name namespace; do
                kube patch "$kind.pileus.dev" "$name" ${namespace:+-n "$namespace"} --type merge \
                    -p '{"metadata":{"finalizers":null}}' >/dev/null
            done
    fi
    kube delete customresourcedefinitions -l "$mark" --timeout=60s >/dev/null
    kube delete validatingadmissionpolicies,validatingadmissionpolicybindings -l "$mark" --timeout=60s >/dev/null
    kube delete namespaces,clusterroles,clusterrolebindings -l "$mark" --timeout=90s >/dev/null
    kube delete rolebindings --all-namespaces -l "$mark" --timeout=60s >/dev/null
    # The manager's note on the namespaces of others.
    kube get namespaces -o 'jsonpath={range .items[?(@.metadata.annotations.pileus\.dev/default-security-group)]}{.metadata.name}{"\n"}{end}' |
        while read -r namespace; do
            kube annotate namespace "$namespace" pileus.dev/default-security-group- >/dev/null
        done
}
