# Starts a service of a machine: in a cgroup of its own, which says what belongs to it, with its pid on record.
# Arguments: NAME PROGRAM [ARGUMENT...].
set -eu
name=$1
shift
for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -e "$root/cgroup.procs" ] || continue
    mkdir -p "$root/$name"
    for setting in cpuset.cpus cpuset.mems; do
        [ ! -e "$root/$setting" ] || [ ! -e "$root/$name/$setting" ] || cat "$root/$setting" > "$root/$name/$setting"
    done
    echo 0 > "$root/$name/cgroup.procs"
done
mkdir -p /run/services
printf '%s\0' "$@" > "/run/services/$name.command"
# Left to the machine's first process, which reaps it.
setsid "$@" &
echo $! > "/run/services/$name"
