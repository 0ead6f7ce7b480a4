# shellcheck shell=bash
# Progress: one line a step with its time; a step that fails shows the end of its log.

STEP_PIDS=()
STEP_TEXTS=()
STEP_LOGS=()
STEP_STARTS=()

# Starts a step beside others: step_begin TEXT FUNCTION ARGUMENTS…
# The function runs in a subshell with errexit on; results go to files.
step_begin() {
    local text="$1" log
    shift
    mkdir -p "$LOG_DIR/steps"
    log="$LOG_DIR/steps/$1${2:+-${2//[^a-zA-Z0-9]/_}}.log"
    # A process group of its own, so that an interruption reaches the whole step.
    set -m
    (
        set +m -euo pipefail
        trap - INT TERM
        "$@"
    ) >"$log" 2>&1 </dev/null &
    set +m
    STEP_PIDS+=("$!")
    STEP_TEXTS+=("$text")
    STEP_LOGS+=("$log")
    STEP_STARTS+=("$(date +%s%N)")
}

step_elapsed() {
    local ms=$((($(date +%s%N) - $1) / 1000000))
    printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

# Waits for all steps begun; the first failure ends the program.
step_wait() {
    local failed="" i running line last=0
    while [ "${#STEP_PIDS[@]}" -gt 0 ]; do
        running=()
        for i in "${!STEP_PIDS[@]}"; do
            if kill -0 "${STEP_PIDS[$i]}" 2>/dev/null; then
                running+=("${STEP_TEXTS[$i]} $(step_elapsed "${STEP_STARTS[$i]}")")
                continue
            fi
            local status=0
            wait "${STEP_PIDS[$i]}" || status=$?
            [ -t 1 ] && printf '\r\033[K'
            if [ "$status" = 0 ]; then
                printf '  ok      %-58s %9s\n' "${STEP_TEXTS[$i]}" "$(step_elapsed "${STEP_STARTS[$i]}")"
            else
                printf '  FAILED  %-58s %9s\n' "${STEP_TEXTS[$i]}" "$(step_elapsed "${STEP_STARTS[$i]}")"
                failed="${failed:-${STEP_LOGS[$i]}}"
            fi
            unset "STEP_PIDS[$i]" "STEP_TEXTS[$i]" "STEP_LOGS[$i]" "STEP_STARTS[$i]"
        done
        [ "${#running[@]}" = 0 ] && break
        line="$(printf '%s; ' "${running[@]}")"
        if [ -t 1 ]; then
            printf '\r\033[K  ...     %.100s' "${line%; }"
        elif [ $((SECONDS - last)) -ge 30 ] && [ "$SECONDS" -ge 30 ]; then
            printf '  ...     %s\n' "${line%; }"
            last=$SECONDS
        fi
        sleep 0.1
    done
    STEP_PIDS=() STEP_TEXTS=() STEP_LOGS=() STEP_STARTS=()
    [ -z "$failed" ] || step_failed "$failed"
}

# Ends the steps that run.
steps_kill() {
    local pid
    for pid in ${STEP_PIDS[@]+"${STEP_PIDS[@]}"}; do kill -TERM -- "-$pid" 2>/dev/null || true; done
}

step() {
    step_begin "$@"
    step_wait
}

step_failed() {
    {
        echo
        echo "The last lines of $1:"
        tail -n 20 "$1" | sed 's/^/    /'
        echo
        echo "The way out: mend what the lines say and run the same command again; it goes on where"
        echo "it stopped. \`hack/devstack status\` shows what runs, \`hack/devstack down\` removes it all."
        echo "Logs of all parts: $LOG_DIR"
    } >&2
    exit 1
}
