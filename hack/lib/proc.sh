# shellcheck shell=bash
# Long-lived processes. A process is known by its pid and its start time, so that a
# number the kernel gave to somebody else is never signalled.

PROC_DIR="$RUN_DIR/proc"

# Start time in clock ticks since boot (field 22 of /proc/PID/stat; the name in field 2
# may hold blanks and parentheses). Fails for zombies and the dead.
proc_start_time() {
    local stat fields
    stat="$(cat "/proc/$1/stat" 2>/dev/null)" || return 1
    read -r -a fields <<<"${stat##*) }"
    [ "${fields[0]}" != Z ] || return 1
    echo "${fields[19]}"
}

# The pid of a process of ours that runs.
proc_pid() {
    local pid start
    [ -r "$PROC_DIR/$1" ] || return 1
    read -r pid start <"$PROC_DIR/$1" || return 1
    [ "$(proc_start_time "$pid")" = "$start" ] || return 1
    echo "$pid"
}

proc_alive() { proc_pid "$1" >/dev/null; }

# proc_start NAME COMMAND…: does nothing when NAME runs. Standard output goes to its log.
proc_start() {
    local name="$1" log="$LOG_DIR/$1.log" pid
    shift
    if proc_alive "$name"; then return; fi
    mkdir -p "$PROC_DIR" "$LOG_DIR"
    # One old log is kept; without this a lab that runs for weeks fills the disk.
    if [ -f "$log" ] && [ "$(stat -c %s "$log")" -gt 50000000 ]; then mv -f "$log" "$log.1"; fi
    # The mark in its environment finds the process when its pid file is lost. Descriptor 9
    # is the lock of the running command: no daemon may keep it.
    PILEUS_DEVSTACK_OWNER="$STATE_DIR" setsid "$@" </dev/null >>"$log" 2>&1 9>&- &
    pid=$!
    echo "$pid $(proc_start_time "$pid")" >"$PROC_DIR/$name.new"
    mv -f "$PROC_DIR/$name.new" "$PROC_DIR/$name"
}

# Fails with the end of its log when NAME has ended; for use right after a start.
proc_check() {
    if proc_alive "$1"; then return; fi
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

# Asks NAME to end, and ends it when it has not after SECONDS (10).
proc_stop() {
    local name="$1" pid end
    pid="$(proc_pid "$name")" || {
        rm -f "$PROC_DIR/$name"
        return 0
    }
    kill -TERM "$pid" 2>/dev/null || true
    end=$((SECONDS + ${2:-10}))
    while proc_alive "$name"; do
        if [ "$SECONDS" -ge "$end" ]; then kill -KILL "$pid" 2>/dev/null || true; fi
        sleep 0.05
    done
    rm -f "$PROC_DIR/$name"
}

proc_kill() {
    local name="$1" pid
    pid="$(proc_pid "$name")" || return 0
    kill -KILL "$pid" 2>/dev/null || true
    while proc_alive "$name"; do sleep 0.02; done
    rm -f "$PROC_DIR/$name"
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
