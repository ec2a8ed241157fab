# Sourced by these scripts: runs commands with progress lines, fails them if they make no progress,
# and reports the last error.
#
# No command is silent for longer than PROGRESS_SEC. Time limits apply to the time without progress,
# because a loaded machine is slow.
# shellcheck shell=bash

# Seconds between two progress lines.
PROGRESS_SEC=${PROGRESS_SEC:-5}
# Seconds without progress of a guest before it counts as hung, and the total limit in seconds.
QUIET_SEC=${QUIET_SEC:-300}
TOTAL_SEC=${TOTAL_SEC:-1200}

# Prints the last line of a file that is not empty, without control characters, cut to the width of
# a line.
last_line() {
    # A carriage return starts a line again: only the text after the last one counts.
    tail -c 4000 "$1" 2>/dev/null | tr '\r' '\n' | sed -e 's/\x1b\[[0-9;?]*[A-Za-z]//g' -e 's/[^[:print:]]//g' |
        awk 'NF { line = $0 } END { print substr(line, 1, 100) }'
}

# Prints the last error in a log: the last lines with the form of an error, else the last line.
last_error() {
    local lines
    lines=$(sed -e 's/\x1b\[[0-9;?]*[A-Za-z]//g' "$1" | awk '
        # A line that only reports a failure is used only if there is no other one.
        /^make(\[[0-9]+\])?: \*\*\*/ || /^error: could not compile/ ||
            /^E: (Can not write log|mmdebstrap failed to run|setup failed: E: command failed)/ { vague = $0; next }
        # The first line of the compiler is the error, the next one its position.
        follows && /^ *-->/ { last = last "\n" $0 }
        { follows = 0 }
        /^(E|Err|error|fatal|dpkg|[^ ]*: error|[^ ]*: command not found)[:[]/ || /^error(\[E[0-9]+\])?:/ ||
            /: (error|fatal):/ || /not found$/ || /No space left on device/ ||
            /Permission denied/ || /Operation not permitted/ || /^dpkg: error/ { last = $0; follows = 1 }
        END { print last ? last : vague }' 2>/dev/null)
    [[ -n $lines ]] || lines=$(last_line "$1")
    printf '%s\n' "${lines:-no output}"
}

# Whether a log contains a network error, for which a retry may help. Other errors would be
# repeated.
is_network_error() {
    local resolve='Temporary failure resolving|Could not connect|Connection (failed|reset|timed out)'
    local fetch='Failed to fetch|Unable to fetch|Hash Sum mismatch|File has unexpected size'
    grep -qE "$resolve|$fetch|50[0234] +[A-Z]" "$1"
}

# logged LOG LABEL COMMAND…: runs a command with its output in LOG and prints the last line of it
# every PROGRESS_SEC. Returns the exit code of the command. Sets `logged_pid` while it runs.
logged() {
    local log=$1 doing=$2 rc=0 from=$SECONDS next=$((SECONDS + PROGRESS_SEC))
    shift 2
    "$@" >"$log" 2>&1 </dev/null 8<&- 9<&- &
    logged_pid=$!
    while kill -0 "$logged_pid" 2>/dev/null; do
        sleep 0.1
        ((SECONDS >= next)) || continue
        next=$((SECONDS + PROGRESS_SEC))
        printf '%s: %s s: %s\n' "$doing" $((SECONDS - from)) "$(last_line "$log")"
    done
    wait "$logged_pid" || rc=$?
    logged_pid=
    return "$rc"
}

# run_steps LABEL COMMAND [LABEL COMMAND…]: runs shell commands in parallel, each with its output in
# a log, and prints one line for all of them every PROGRESS_SEC. The first failing command ends the
# others and is reported with its last error.
run_steps() (
    set -u
    logs=$(mktemp -d "${TMPDIR:-/tmp}/qvm-steps.XXXXXX")
    declare -A pid=() label=() ended=()
    order=()
    stop() {
        local one
        for one in "${order[@]}"; do
            [[ -n ${ended[$one]:-} ]] || kill -TERM -- "-${pid[$one]}" 2>/dev/null || :
        done
        for one in "${order[@]}"; do
            [[ -n ${ended[$one]:-} ]] || wait "${pid[$one]}" 2>/dev/null || :
        done
    }
    trap 'stop; rm -rf "$logs"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    started=$SECONDS next=$((SECONDS + PROGRESS_SEC)) number=0
    set -m # each in a separate process group, which is ended as a whole
    while [[ $# -ge 2 ]]; do
        number=$((number + 1))
        order+=("$number")
        label[$number]=$1
        printf '  %s: started\n' "$1"
        bash -c "$2" >"$logs/$number" 2>&1 </dev/null &
        pid[$number]=$!
        shift 2
    done
    set +m
    left=$number
    while ((left > 0)); do
        sleep 0.2
        for one in "${order[@]}"; do
            [[ -z ${ended[$one]:-} ]] || continue
            ! kill -0 "${pid[$one]}" 2>/dev/null || continue
            rc=0
            wait "${pid[$one]}" || rc=$?
            ended[$one]=1
            left=$((left - 1))
            if [[ $rc != 0 ]]; then
                stop
                kept=$(mktemp "${TMPDIR:-/tmp}/qvm-failed.XXXXXX.log")
                cp "$logs/$one" "$kept"
                {
                    printf 'error: %s: failed with %s after %s s:\n' "${label[$one]}" "$rc" $((SECONDS - started))
                    last_error "$kept" | sed 's/^/  /'
                    printf 'hint: its whole output is in %s\n' "$kept"
                } >&2
                exit 1
            fi
            printf '  %s: done in %s s\n' "${label[$one]}" $((SECONDS - started))
        done
        if ((left > 0 && SECONDS >= next)); then
            next=$((SECONDS + PROGRESS_SEC))
            for one in "${order[@]}"; do
                [[ -z ${ended[$one]:-} ]] || continue
                printf '  %4s s  %s: %s\n' $((SECONDS - started)) "${label[$one]}" "$(last_line "$logs/$one")"
            done
        fi
    done
)

# while_progress FILE COMMAND…: runs a command until it ends, as long as FILE (a guest's console)
# grows: at most QUIET_SEC without a byte and TOTAL_SEC in total. Prints the last line of FILE every
# PROGRESS_SEC. Returns the exit code of the command; 124 if the time is up.
while_progress() {
    local file=$1 child rc=0 size=-1 now grew=$SECONDS started=$SECONDS next=$((SECONDS + PROGRESS_SEC))
    shift
    "$@" &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.1
        now=$(stat -c %s "$file" 2>/dev/null) || now=-1
        if [[ $now != "$size" ]]; then size=$now grew=$SECONDS; fi
        if ((SECONDS - grew >= QUIET_SEC || SECONDS - started >= TOTAL_SEC)); then
            kill -TERM "$child" 2>/dev/null || :
            wait "$child" 2>/dev/null || :
            if ((SECONDS - started >= TOTAL_SEC)); then
                printf '  error: not done after %s s\n' "$((SECONDS - started))" >&2
            else
                printf '  error: no output on the console for %s s\n' "$((SECONDS - grew))" >&2
            fi
            return 124
        fi
        if ((SECONDS >= next)); then
            next=$((SECONDS + PROGRESS_SEC))
            printf '  %4s s  console: %s\n' $((SECONDS - started)) "$(last_line "$file")"
        fi
    done
    wait "$child" || rc=$?
    return "$rc"
}
