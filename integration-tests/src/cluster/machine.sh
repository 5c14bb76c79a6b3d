# The first process of a machine of the test cluster: makes its mounts, says so, and reaps orphans until it is ended.
# Arguments: FOLDER HOSTNAME LIFETIME [CGROUP]. LIFETIME "stdin" ends the machine when standard input closes, so that it
# never outlives the test that started it. With CGROUP it first goes there, and starts itself again below it.
set -eu
folder=$1
if [ $# = 4 ]; then
    for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ -e "$root/cgroup.procs" ] || continue
        mkdir -p "$root/$4"
        for setting in cpuset.cpus cpuset.mems; do
            [ ! -e "$root/$setting" ] || [ ! -e "$root/$4/$setting" ] || cat "$root/$setting" > "$root/$4/$setting"
        done
        echo 0 > "$root/$4/cgroup.procs"
    done
    exec unshare --cgroup bash "$0" "$1" "$2" "$3"
fi
hostname "$2"

# The machine's own view of the kernel: its links and its cgroups, which begin at the cgroup it was started in.
hierarchies=$(awk '$3 == "cgroup" || $3 == "cgroup2" {print $2, $3, $4}' /proc/mounts)
mount -t sysfs sysfs /sys
if [ "$(echo "$hierarchies" | head -n 1 | cut -d ' ' -f 1)" = /sys/fs/cgroup ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    echo "$hierarchies" | while read -r path kind options; do
        mkdir -p "$path"
        controllers=$(echo "$options" | tr ',' '\n' | grep -vxE 'rw|ro|nosuid|nodev|noexec|relatime|nsdelegate|xattr|release_agent=.*|clone_children' | paste -sd , -)
        mount -t "$kind" ${controllers:+-o "$controllers"} cgroup "$path"
    done
fi
# No process stays in the topmost cgroup, or cgroup v2 could not hand controllers down.
for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -e "$root/cgroup.procs" ] || continue
    mkdir -p "$root/machine"
    [ ! -e "$root/cpuset.cpus" ] || echo 1 > "$root/cgroup.clone_children"
    for setting in cpuset.cpus cpuset.mems; do
        [ ! -e "$root/$setting" ] || [ ! -e "$root/machine/$setting" ] || cat "$root/$setting" > "$root/machine/$setting"
    done
    echo 0 > "$root/machine/cgroup.procs"
    if [ -e "$root/cgroup.subtree_control" ]; then
        for controller in $(cat "$root/cgroup.controllers"); do
            echo "+$controller" > "$root/cgroup.subtree_control" || true
        done
    fi
done

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock "$folder/lib" "$folder/log"
mount --bind "$folder/lib" /var/lib
mount --bind "$folder/log" /var/log

# Pods share their volumes' mounts with the machine.
mount --make-rshared /
ip link set lo up
for setting in net/ipv4/ip_forward=1 net/ipv4/conf/all/send_redirects=0 net/ipv4/conf/default/send_redirects=0 \
    net/ipv4/conf/all/rp_filter=0 net/ipv4/conf/default/rp_filter=0 net/bridge/bridge-nf-call-iptables=1; do
    [ ! -e "/proc/sys/${setting%%=*}" ] || echo "${setting#*=}" > "/proc/sys/${setting%%=*}"
done
touch "$folder/ready"

if [ "$3" = stdin ]; then
    while read -r _; do :; done
else
    exec 0< /dev/null
    while :; do
        sleep infinity &
        wait
    done
fi
