# shellcheck shell=bash
# Kubernetes' own programs: the machine's where they are new enough, else built (gotools.sh).

# The oldest Kubernetes, 1.N, that Pileus supports.
KUBERNETES_MINOR=33

# kubernetes_program_minor PROGRAM: N of the 1.N that it says it is; nothing when it does not say.
kubernetes_program_minor() {
    local arguments=(--version)
    [ "${1##*/}" != kubectl ] || arguments=(version --client)
    "$1" "${arguments[@]}" 2>/dev/null | sed -nE '1s/.*v1\.([0-9]+)\..*/\1/p' || true
}

# kubernetes_found PROGRAM…: the directory of KUBEBUILDER_ASSETS or PATH that has all of them.
# What has the first but will not do is passed over, which is said on standard error.
kubernetes_found() {
    local first="$1" dir from name minor why
    for from in KUBEBUILDER_ASSETS PATH; do
        case "$from" in
        KUBEBUILDER_ASSETS) dir="${KUBEBUILDER_ASSETS:-}" ;;
        PATH) dir="$(dirname "$(type -P "$first" || echo /none/x)")" ;;
        esac
        dir="${dir%/}"
        # The cache's own, which a caller has put there, is not the machine's choice.
        [ -n "$dir" ] && [ -x "$dir/$first" ] && [ "$dir" != "$(go_tool_dir kubernetes)" ] || continue
        why=""
        for name in "$@"; do
            if [ ! -x "$dir/$name" ]; then
                why="there is no $name beside it"
                break
            fi
            minor="$(kubernetes_program_minor "$dir/$name")"
            if [ -z "$minor" ]; then
                why="$name does not say which version it is"
            elif [ "$minor" -lt "$KUBERNETES_MINOR" ]; then
                why="$name is of Kubernetes 1.$minor, and 1.$KUBERNETES_MINOR is the oldest that Pileus supports"
            fi
            [ -z "$why" ] || break
        done
        if [ -z "$why" ]; then
            echo "$dir"
            return
        fi
        echo "$dir/$first, found by $from, is not used: $why" >&2
    done
    return 1
}

# kubernetes_dir PROGRAM…: the directory that has them, or will once kubernetes_ready has run.
kubernetes_dir() { kubernetes_found "$@" 2>/dev/null || go_tool_dir kubernetes; }

# Which programs stand or fall together: a controller manager goes with its own API server.
CONTROL_PLANE=(kube-apiserver kube-controller-manager)
control_plane_dir() { kubernetes_dir "${CONTROL_PLANE[@]}"; }
kubectl_path() { echo "$(kubernetes_dir kubectl)/kubectl"; }

# Says what of the machine is passed over: kubernetes_say PROGRAM…
kubernetes_say() {
    local said
    said="$(kubernetes_found "$@" 2>&1 >/dev/null)" || true
    [ -z "$said" ] || warn "$said"
}

# kubernetes_ready kubectl|control-plane…: builds in one go what the machine does not have.
kubernetes_ready() {
    local what wanted=()
    for what in "$@"; do
        case "$what" in
        kubectl) kubernetes_found kubectl &>/dev/null || wanted+=(kubectl) ;;
        control-plane) kubernetes_found "${CONTROL_PLANE[@]}" &>/dev/null || wanted+=("${CONTROL_PLANE[@]}") ;;
        esac
    done
    [ "${#wanted[@]}" = 0 ] || go_tool kubernetes "${wanted[@]}"
}

kube() { command "$KUBECTL" --kubeconfig "$ADMIN_KUBECONFIG" "$@"; }
