#!/bin/sh
# The first process of a virtual machine: runs the test programs in /mnt/tests and tells of them
# on the second serial line. Lines that begin with @@ are read by xtask, which ends the machine
# after the last.
exec </dev/null >/dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

begin() {
    set -e
    echo "@@ up $(uname -r)"
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t bpf bpf /sys/fs/bpf
    mount -t securityfs securityfs /sys/kernel/security
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /dev/pts /dev/shm /lib/modules
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    ln -sfn /proc/self/fd /dev/fd
    # Its module is loaded when it is opened.
    mkdir -p /dev/net
    [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
    until mount -r -t ext4 LABEL=modules /lib/modules 2>/dev/null; do sleep 0.1; done
    touch /etc/hosts /etc/resolv.conf
    ip link set lo up
    # Where the test programs expect the workspace that they were built in.
    . /mnt/environment
    mkdir -p "$WORKSPACE/target" "$WORKSPACE/tests"
    ln -sfn /mnt/bpf "$WORKSPACE/target/bpf"
    ln -sfn /mnt/jobfence /usr/local/bin/jobfence
}

if (begin); then
    set -a
    . /mnt/environment
    set +a
    cd /root || exit
    # Several words each.
    # shellcheck disable=SC2086
    for name in $TESTS; do
        echo "@@ begin $name"
        timeout --kill-after=10 "$LIMIT" "/mnt/tests/$name" $ARGUMENTS
        code=$?
        # Behind whatever it left of a line.
        printf '\n@@ end %s %s\n' "$name" "$code"
    done
else
    dmesg | tail -n 20
fi
echo "@@ done"
exec sleep infinity
