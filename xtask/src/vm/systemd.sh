#!/bin/sh
# In a virtual machine with systemd: runs the test $2 of the program $1 in a unit, and tells of it on
# the second serial line as init.sh does. As the first process, it only prepares that, and becomes
# systemd.
exec </dev/null >/dev/ttyS1 2>&1
. /mnt/environment

if [ $$ -eq 1 ]; then
    echo "@@ up $(uname -r)"
    mkdir -p /lib/modules "$WORKSPACE/tests" "$WORKSPACE/userspace/cli"
    until mount -r -t ext4 LABEL=modules /lib/modules 2>/dev/null; do sleep 0.1; done
    touch /etc/hosts /etc/resolv.conf
    # What `jobfence doctor` would have its administrator do.
    echo kernel.yama.ptrace_scope=1 >/etc/sysctl.d/test.conf
    # Where the test programs expect the workspace that they were built in.
    ln -sfn /mnt/units "$WORKSPACE/userspace/cli/systemd"
    units=/etc/systemd/system
    printf '%s\n' '[Service]' Type=exec EnvironmentFile=/mnt/environment \
        "ExecStart=/mnt/systemd $1 $2" >$units/test.service
    mkdir -p $units/multi-user.target.wants
    ln -s ../test.service $units/multi-user.target.wants
    exec /sbin/init
fi

# A unit that did not start is told, and is no reason not to begin.
systemctl is-system-running --wait || systemctl --failed --no-pager
cd /root || exit
echo "@@ begin $1::$2"
# Several words.
# shellcheck disable=SC2086
timeout --kill-after=10 "$LIMIT" "/mnt/tests/$1" $ARGUMENTS --exact "$2"
printf '\n@@ end %s %s\n' "$1::$2" $?
echo "@@ done"
exec sleep infinity
