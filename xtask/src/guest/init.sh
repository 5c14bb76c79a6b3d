#!/bin/sh
# The first process of the guest after its disks are there: makes the machine, then runs the tests or systemd.
. /coracle/settings
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
cp -r /coracle/placed/. /
hostname guest
mkdir -p /root && mount -t tmpfs tmp /tmp

if [ "$SYSTEMD" = yes ]; then
  cp /coracle/bin/* /usr/local/bin/
  cp /coracle/coracle.service /coracle/coracle-guest.service /etc/systemd/system/
  # The console is the tests', and nothing that a long-lived machine wants may slow this one.
  systemctl mask serial-getty@ttyS0.service systemd-timesyncd.service systemd-networkd.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
  systemctl enable coracle-guest.service
  exec /sbin/init
fi

mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
if [ "$CGROUP" = v1 ]; then
  mount -t tmpfs cgroup /sys/fs/cgroup
  for controller in cpu,cpuacct cpuset memory devices freezer blkio pids; do
    mkdir "/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
  done
else
  mount -t cgroup2 cgroup /sys/fs/cgroup
fi
# As on a device, where systemd makes every mount shared.
mount --make-rshared /
for module in overlay bridge veth br_netfilter; do modprobe $module; done
ip link set lo up
/coracle/run-tests
busybox poweroff -f
