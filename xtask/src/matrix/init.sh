#!/bin/busybox sh
# The first process of a booted kernel: runs each test of /tests in a process of its own, and tells the second serial line.
#
# A line that begins with @ is ours; what a test said begins with |, whatever it said.
/bin/busybox --install -s /bin
# Busybox starts itself anew for each program that it has, under whatever name it is; that is no shell to follow processes of.
ln -sf /usr/bin/dash /bin/sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root TERM=dumb
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
mount -t tmpfs none /run
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
mkdir -p /dev/shm /dev/pts
ln -s /proc/self/fd /dev/fd
exec </dev/null >/dev/ttyS1 2>&1
while read -r module; do insmod "/modules/$module" || echo "@fault the module $module was refused"; done </modules/order
ip link set lo up || echo "@fault loopback does not come up"
[ -e /sys/kernel/btf/vmlinux ] || echo "@fault the kernel has no type information"
now() { cut -d' ' -f1 /proc/uptime; }
echo "@ready $(uname -r) $(now)"
while read -r number binary test limit; do
    echo "@begin $number $(now)"
    timeout -s KILL "$limit" "/tests.d/$binary" --exact "$test" </dev/null >/tmp/said 2>&1
    code=$?
    result=$(grep '^test result: ' /tmp/said)
    [ "$code" = 0 ] || tail -n 60 /tmp/said | sed 's/^/|/'
    rm /tmp/said
    echo "@end $number $(now) $code $result"
    # What a failed test left behind must not reach the next one.
    for group in /sys/fs/cgroup/*/; do echo 1 >"$group/cgroup.kill"; done
done </tests
echo "@done"
sync
poweroff -f
