# shellcheck shell=bash
# Programs written in Go, each of the version that hack/tools/MODULE/go.mod names. What a step
# needs is built from Go modules once and kept in the cache by what it was built from.

GO_TOOLS_DIR="$REPO_DIR/hack/tools"
# Of Debian's bookworm-backports, for machines without Go. It need not be the Go of a go.mod:
# since 1.21 Go fetches the one that a module names by itself.
GO_PACKAGE=golang-1.23-go
GO_PACKAGE_BIN=/usr/lib/go-1.23/bin

# go_tool_version MODULE PATH: the version of a dependency in MODULE's go.mod, as in v1.36.3.
go_tool_version() {
    awk -v path="$2" '$1 == "require" { $0 = substr($0, 9) }
        $1 == path { print $2; exit }' "$GO_TOOLS_DIR/$1/go.mod"
}

# What a program says when it is asked for its version is given to it by the linker.
go_tool_ldflags() {
    local version minor
    case "$1" in
    kubernetes)
        version="$(go_tool_version kubernetes k8s.io/kubernetes)"
        minor="${version#v1.}"
        printf -- '-X k8s.io/component-base/version.%s ' \
            "gitVersion=$version" gitMajor=1 "gitMinor=${minor%%.*}"
        ;;
    helm) printf -- '-X helm.sh/helm/v4/internal/version.version=%s ' "$(go_tool_version helm helm.sh/helm/v4)" ;;
    kubeconform) printf -- '-X main.version=%s ' "$(go_tool_version kubeconform github.com/yannh/kubeconform)" ;;
    kwok) printf -- '-X sigs.k8s.io/kwok/pkg/consts.Version=%s ' "$(go_tool_version kwok sigs.k8s.io/kwok)" ;;
    esac
    printf -- '-s -w'
}

# go_tool_dir MODULE: where its programs are kept, whether they are there or not. Its name is
# made of all that goes into them but the release of Go, which no result depends on: so that
# what is there serves without any Go.
go_tool_dir() {
    local sum
    sum="$({
        cat "$GO_TOOLS_DIR/$1/go.mod" "$GO_TOOLS_DIR/$1/go.sum"
        go_tool_ldflags "$1"
        uname -m
    } | sha256sum)"
    echo "$CACHE_DIR/tools/$1-${sum:0:16}"
}

# The import path of a program, from the lines `tool …` of its go.mod.
go_tool_package() {
    awk -v name="/$2" '$1 == "tool" { $0 = substr($0, 6) }
        substr($1, length($1) - length(name) + 1) == name && $2 == "" { print $1; exit }' \
        "$GO_TOOLS_DIR/$1/go.mod" | grep . || {
        echo "hack/tools/$1/go.mod has no line \`tool …/$2\`" >&2
        return 1
    }
}

# go_tool MODULE PROGRAM…: makes sure that they are in $(go_tool_dir MODULE).
go_tool() {
    local module="$1" dir
    shift
    dir="$(go_tool_dir "$module")"
    if go_tool_there "$dir" "$@"; then
        touch "$dir"
        return
    fi
    mkdir -p "$CACHE_DIR/tools"
    # One build at a time: each uses all processors, and Go may have to be installed.
    (
        set -e
        flock 8
        go_tool_there "$dir" "$@" || go_tool_build "$module" "$dir" "$@"
    ) 8>"$CACHE_DIR/tools/lock"
}

go_tool_there() {
    local dir="$1" name
    shift
    for name in "$@"; do [ -x "$dir/$name" ] || return 1; done
}

# go_tool_build MODULE DIRECTORY PROGRAM…: those that are missing; under the lock.
go_tool_build() {
    local module="$1" dir="$2" name package packages=() go
    shift 2
    for name in "$@"; do
        [ ! -x "$dir/$name" ] || continue
        package="$(go_tool_package "$module" "$name")"
        packages+=("$package")
    done
    go="$(go_found)" || {
        packages_for_go
        go="$(go_found)"
    }
    # What killed runs left, and what no checkout of this machine has used for a month.
    rm -rf "$CACHE_DIR"/tools/.new.*
    find "$CACHE_DIR/tools" -mindepth 1 -maxdepth 1 -type d -name "$module-*" -mtime +30 -exec rm -rf {} +
    # Whole or not at all: a program appears under its name in one step. No C: what comes out
    # needs no library of this machine. The linker drops debug information (-w), so the compiler
    # need not make it: a tenth less to compile.
    local new="$CACHE_DIR/tools/.new.$$"
    mkdir -p "$new"
    (
        cd "$GO_TOOLS_DIR/$module"
        CGO_ENABLED=0 GOTOOLCHAIN=auto GOWORK=off "$go" build -mod=readonly -trimpath -buildvcs=false \
            -gcflags=all=-dwarf=false -ldflags "$(go_tool_ldflags "$module")" -o "$new/" "${packages[@]}"
    )
    mkdir -p "$dir"
    mv "$new"/* "$dir/"
    rmdir "$new"
}

# A Go that fetches the release that a go.mod asks for: 1.21 or newer.
go_found() {
    local go minor
    for go in "$(type -P go || true)" "$GO_PACKAGE_BIN/go"; do
        [ -n "$go" ] && [ -x "$go" ] || continue
        minor="$(cd / && GOTOOLCHAIN=local "$go" version | sed -nE 's/^go version go1\.([0-9]+).*/\1/p')"
        [ "${minor:-0}" -ge 21 ] || continue
        echo "$go"
        return
    done
    return 1
}

# Without what it recommends: a C++ compiler.
packages_for_go() {
    [ "$(id -u)" = 0 ] || {
        echo "Go 1.21 or newer is not in PATH, and installing Debian's package $GO_PACKAGE needs root" >&2
        return 1
    }
    echo "Go is missing or older than 1.21: Debian's package $GO_PACKAGE is installed"
    apt_sources
    apt update
    apt install --no-install-recommends -t bookworm-backports "$GO_PACKAGE"
}
