# Runs one server for its owner, who writes words to stdin, one a line, and reads one line of answer for each. When the
# owner closes the pipe, by will or by dying, the server and all its processes are killed and the folder is removed.
#
# The processes are found by their parents, not by group or session: PostgreSQL's backends and RabbitMQ's helpers each
# have a session of their own.
folder=$1 log=$2 stop_signal=$3 after=$4
shift 4
server=
cd / || exit 1
# An owner that died while it waited for an answer must not end the watch.
trap '' PIPE

# Sets `members` to the server's process and everything below it.
tree() {
    pairs= grown=yes
    lines=$(cat /proc/[0-9]*/stat 2>/dev/null)
    # A line is a process; its name may have anything in it.
    set -f
    IFS='
'
    for line in $lines; do
        state=${line##*) }
        parent=${state#? }
        pairs="$pairs${line%% *}:${parent%% *}
"
    done
    members="
$server
"
    while [ -n "$grown" ]; do
        grown=
        for pair in $pairs; do
            case $members in
                *"
${pair%:*}
"*) ;;
                *"
${pair#*:}
"*) members="$members${pair%:*}
" grown=yes ;;
            esac
        done
    done
    members=$(echo $members)
    unset IFS
    set +f
}

# Stops every process; looks again until nothing is new, since what still ran may have forked.
pause() {
    seen=
    tree
    while [ "$members" != "$seen" ]; do
        seen=$members
        kill -STOP $members 2>/dev/null
        tree
    done
}

# A dead process that nobody has collected counts as gone.
lives() {
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    case ${line##*) } in
        [ZX]*) return 1 ;;
    esac
}

# Waits at most $1 hundredths of a second until none of the other arguments lives.
gone() {
    left=$1
    shift
    for process; do
        while lives "$process"; do
            [ "$left" -gt 0 ] || return 1
            left=$((left - 1))
            sleep 0.01
        done
    done
}

kill_all() {
    pause
    kill -KILL $members 2>/dev/null
    finish $members
}

# What comes after the last process: it is waited for, so that nothing holds the port or the folder.
finish() {
    gone 1000 "$@" || answer="processes are left that SIGKILL does not end"
    wait "$server" 2>/dev/null
    server=
    eval "$after" >/dev/null 2>&1
}

while read -r word; do
    answer=done
    case $word in
        start)
            (trap - PIPE; cd "$folder" && exec setsid "$@") </dev/null >>"$log" 2>&1 &
            server=$! ;;
        lives) [ -n "$server" ] && lives "$server" || answer=ended ;;
        pause) pause ;;
        resume) tree; kill -CONT $members 2>/dev/null ;;
        stop)
            tree
            kill -CONT $members 2>/dev/null
            kill -"$stop_signal" "$server" 2>/dev/null
            if gone 6000 "$server"; then finish $members; else kill_all; answer="it had to be killed"; fi ;;
        kill) kill_all ;;
    esac
    echo "$answer" 2>/dev/null
done
[ -z "$server" ] || kill_all
rm -rf "$folder"
