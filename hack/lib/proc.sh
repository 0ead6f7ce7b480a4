# shellcheck shell=bash
# Long-lived processes. A process is known by its pid and its start time, so that a
# number the kernel gave to somebody else is never signalled.

PROC_DIR="$RUN_DIR/proc"
# Of the processes that keep others running, by the other's name; and `.NAME.restarts`.
SUPERVISE_DIR="$RUN_DIR/supervise"

# Start time in clock ticks since boot (field 22 of /proc/PID/stat; the name in field 2
# may hold blanks and parentheses). Fails for zombies and the dead.
proc_start_time() {
    local stat fields
    stat="$(cat "/proc/$1/stat" 2>/dev/null)" || return 1
    read -r -a fields <<<"${stat##*) }"
    [ "${fields[0]}" != Z ] || return 1
    echo "${fields[19]}"
}

# proc_record FILE PID: writes down who it is.
proc_record() {
    echo "$2 $(proc_start_time "$2")" >"$1.new"
    mv -f "$1.new" "$1"
}

# The pid in a file of proc_record, if that process runs.
proc_recorded() {
    local pid start
    [ -r "$1" ] || return 1
    read -r pid start <"$1" || return 1
    [ "$(proc_start_time "$pid")" = "$start" ] || return 1
    echo "$pid"
}

# The pid of a process of ours that runs.
proc_pid() { proc_recorded "$PROC_DIR/$1"; }

proc_alive() { proc_pid "$1" >/dev/null; }

# The pid of the one that keeps it running.
supervisor_pid() { proc_recorded "$SUPERVISE_DIR/$1"; }

# How often its supervisor has started it again.
proc_restarts() {
    local count=0
    [ ! -r "$SUPERVISE_DIR/.$1.restarts" ] || read -r count _ <"$SUPERVISE_DIR/.$1.restarts"
    echo "$count"
}

# Guests that are emulated take all the processors they get; what serves them goes first, as
# Debian's own scripts start Open vSwitch and OVN (ovs-ctl, ovn-ctl: priority -10). Guests
# inherit from libvirtd. Where the kernel groups processes by session (autogroup), a priority
# counts only within one, and each guest is a session: there the session gets it as well.
proc_nice() {
    case "$1" in
    *-libvirtd | *-virtlogd) echo 0 ;;
    *) echo -10 ;;
    esac
}

# proc_spawn FILE NAME COMMAND…: starts it, its output to the log of NAME, its pid to FILE.
proc_spawn() {
    local file="$1" log="$LOG_DIR/$2.log" nice
    nice="$(proc_nice "$2")"
    shift 2
    mkdir -p "$PROC_DIR" "$LOG_DIR" "${file%/*}"
    # One old log is kept; without this a lab that runs for weeks fills the disk.
    if [ -f "$log" ] && [ "$(stat -c %s "$log")" -gt 50000000 ]; then mv -f "$log" "$log.1"; fi
    # The mark in its environment finds the process when its pid file is lost. Descriptor 9
    # is the lock of the running command: no daemon may keep it.
    # shellcheck disable=SC2016
    PILEUS_DEVSTACK_OWNER="$STATE_DIR" setsid bash -c \
        '[ ! -w /proc/self/autogroup ] || echo "$0" >/proc/self/autogroup; exec nice -n "$0" "$@"' \
        "$nice" "$@" </dev/null >>"$log" 2>&1 9>&- &
    proc_record "$file" "$!"
}

# proc_start NAME COMMAND…: does nothing when NAME runs. Standard output goes to its log.
proc_start() {
    local name="$1"
    shift
    if proc_alive "$name"; then return; fi
    proc_spawn "$PROC_DIR/$name" "$name" "$@"
}

# As proc_start, and what ends by itself is started again until proc_stop or proc_kill.
proc_supervise() {
    local name="$1"
    shift
    if proc_alive "$name" && supervisor_pid "$name" >/dev/null; then return; fi
    # One that waits to be started again is not waited for.
    proc_stop "$name"
    proc_spawn "$SUPERVISE_DIR/$name" "$name" bash "$REPO_DIR/hack/lib/supervise" "$name" "$@"
    wait_for 10 "$name" test -e "$PROC_DIR/$name"
}

# Fails with the end of its log when NAME has ended; for use right after a start. What is
# supervised may fail a few times, for a reason that passes.
proc_check() {
    if proc_alive "$1"; then return; fi
    if supervisor_pid "$1" >/dev/null && [ "$(proc_restarts "$1")" -lt 4 ]; then return; fi
    echo "$1 has ended; the end of $LOG_DIR/$1.log:" >&2
    tail -n 15 "$LOG_DIR/$1.log" >&2
    return 1
}

# proc_wait NAME SECONDS COMMAND…: waits until COMMAND succeeds while NAME lives.
proc_wait() {
    local name="$1" end=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        proc_check "$name"
        if [ "$SECONDS" -ge "$end" ]; then
            echo "$name runs but does not answer; the end of $LOG_DIR/$name.log:" >&2
            tail -n 15 "$LOG_DIR/$name.log" >&2
            return 1
        fi
        sleep 0.1
    done
}

# Asks NAME to end, and ends it when it has not after SECONDS (10). It stays down.
proc_stop() { proc_end "$1" TERM "${2:-10}"; }

# As a crash, but it stays down.
proc_kill() { proc_end "$1" KILL 0; }

# proc_end NAME SIGNAL SECONDS
proc_end() {
    local name="$1" signal="$2" end=$((SECONDS + $3)) pid asked="" supervisor
    # First of all: it would start the other again. Once it knows, it ends with it.
    if supervisor="$(supervisor_pid "$name")"; then kill -TERM "$supervisor" 2>/dev/null || true; fi
    while pid="$(proc_pid "$name")" || supervisor_pid "$name" >/dev/null; do
        if [ -n "$pid" ]; then
            [ "$SECONDS" -lt "$end" ] || signal=KILL
            if [ "$asked" != "$pid $signal" ]; then
                kill "-$signal" "$pid" 2>/dev/null || true
                asked="$pid $signal"
            fi
        fi
        sleep 0.02
    done
    rm -f "$PROC_DIR/$name" "$SUPERVISE_DIR/$name" "$SUPERVISE_DIR/.$name.restarts"
}

# All processes that carry the mark of the lab with this state directory.
proc_owned() {
    local dir
    for dir in /proc/[0-9]*; do
        # Gone meanwhile, or a kernel thread: not ours.
        if tr '\0' '\n' <"$dir/environ" 2>/dev/null | grep -qxF "PILEUS_DEVSTACK_OWNER=$1"; then
            echo "${dir#/proc/}"
        fi
    done 2>/dev/null
}
