"""Run in a sandbox: reach for what is the host's, or the sandbox's own guard's, by less trodden ways; print what each attempt met."""

import ctypes
import errno
import fcntl
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
ATTEMPTS = {}
KEY_CALLS = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[platform.machine()]
SHMGET = {"x86_64": 29, "aarch64": 194}[platform.machine()]
MQ_OPEN = {"x86_64": 240, "aarch64": 180}[platform.machine()]
VM_READ = {"x86_64": 310, "aarch64": 270}[platform.machine()]
KCMP = {"x86_64": 312, "aarch64": 272}[platform.machine()]
PERF = {"x86_64": 298, "aarch64": 241}[platform.machine()]
BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BY_HANDLE = {"x86_64": 304, "aarch64": 265}[platform.machine()]
PIDFD_SEND, PIDFD_GETFD = 424, 438
NEWNET = 0x40000000
HOST = os.environ["HOST_PID"]


def attempt(function):
    ATTEMPTS[function.__name__] = function
    return function


def call(number, *arguments):
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result


# -- the host's namespaces and processes


@attempt
def host_namespace():
    return os.open(f"/proc/{HOST}/ns/net", os.O_RDONLY)


@attempt
def nsenter_host():
    return subprocess.run(["nsenter", f"--target={HOST}", "--net", "true"], capture_output=True).returncode == 0


@attempt
def nsenter_init():
    return subprocess.run(["nsenter", "--target=1", "--all", "true"], capture_output=True).returncode == 0


@attempt
def namespace_by_pidfd():
    if LIBC.setns(os.pidfd_open(1), NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "setns")
    return "entered"


@attempt
def parent_of_the_network_namespace():
    """NS_GET_USERNS and NS_GET_PARENT lead upwards, if anything does."""
    found = fcntl.ioctl(os.open("/proc/self/ns/user", os.O_RDONLY), 0xB702)
    return f"descriptor {found}"


@attempt
def pidfd_of_the_proxy():
    return os.pidfd_open(int(HOST))


@attempt
def kill_everything():
    """All that it may signal and can see: itself excepted, and the sandbox's first process."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.kill(-1, signal.SIGUSR1)
    return "signalled"


@attempt
def kill_init():
    for number in signal.valid_signals() - {signal.SIGCHLD}:
        os.kill(1, number)
    os.kill(1, 0)
    return "alive"


@attempt
def slow_the_proxy_down():
    os.setpriority(os.PRIO_PROCESS, int(HOST), 19)
    return "slowed"


# -- the sandbox's first process, which holds the socket to the proxy


@attempt
def init_descriptor():
    pidfd = os.pidfd_open(1)
    return ",".join(str(call(PIDFD_GETFD, pidfd, number, 0)) for number in range(3, 9))


@attempt
def init_memory_by_call():
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("QQ", ctypes.addressof(buffer), 8)
    return call(VM_READ, 1, vector, 1, struct.pack("QQ", 0x400000, 8), 1, 0)


@attempt
def init_compare():
    return call(KCMP, os.getpid(), 1, 0, 0, 0)


@attempt
def init_root():
    return os.listdir("/proc/1/root")


@attempt
def init_working_directory():
    return os.readlink("/proc/1/cwd")


@attempt
def init_map_files():
    return os.listdir("/proc/1/map_files")


@attempt
def init_oom_score():
    open("/proc/1/oom_score_adj", "w").write("1000")
    return "written"


# -- the network's set-up


def interface(request, data):
    def go():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, request, struct.pack("16s24s", b"lo", data))
        return "changed"

    return go


ATTEMPTS |= {
    "loopback_down": interface(0x8914, struct.pack("H", 0x8)),
    "loopback_address": interface(0x8916, struct.pack("HH4s", 2, 0, socket.inet_aton("10.1.2.3"))),
    "loopback_name": interface(0x8923, b"eth0"),
}


def netlink(family, kind, flags, body):
    def go():
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as sock:
            sock.sendto(struct.pack("=IHHII", 16 + len(body), kind, 5 | flags, 1, 0) + body, (0, 0))
            sock.settimeout(5)
            answer = sock.recv(65536)
            (kind_of_answer,) = struct.unpack_from("=H", answer, 4)
            if kind_of_answer == 2:
                (code,) = struct.unpack_from("=i", answer, 16)
                if code:
                    raise OSError(-code, "netlink")
        return "done"

    return go


ROUTE, NETFILTER, XFRM, SOCK_DIAG = 0, 12, 6, 4
ATTEMPTS |= {
    "add_route": netlink(ROUTE, 24, 0x400, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)),
    "delete_route": netlink(ROUTE, 25, 0, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 0, 0)),
    "add_rule": netlink(ROUTE, 32, 0x400, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)),
    "add_link": netlink(ROUTE, 16, 0x400, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + struct.pack("=HH5s3x", 9, 3, b"tap9\0")),
    "add_qdisc": netlink(ROUTE, 36, 0x400, struct.pack("=BBHiIII", 0, 0, 0, 1, 0, 0xFFFFFFFF, 0)),
    "flush_connections": netlink(NETFILTER, 1 << 8 | 2, 0, struct.pack("!BBH", 2, 0, 0)),
    "add_security_association": netlink(XFRM, 0x10, 0x400, bytes(224)),
    "list_rules": netlink(NETFILTER, 10 << 8 | 7, 0, struct.pack("!BBH", 1, 0, 0)),
    "delete_chain": netlink(NETFILTER, 0x10, 0, struct.pack("!BBH", 0, 0, 10)),
    "destroy_socket": netlink(SOCK_DIAG, 21, 0, struct.pack("=BBBBI48s", 2, 6, 0, 0, 0xFFF, bytes(48))),
}


def option(level, name, value, kind=socket.SOCK_STREAM):
    def go():
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(level, name, value)
        return "set"

    return go


ATTEMPTS |= {
    "transparent_socket": option(socket.IPPROTO_IP, 19, 1),
    "marked_socket": option(socket.SOL_SOCKET, 36, 1),
    "repaired_socket": option(socket.IPPROTO_TCP, 19, 1),
    "forced_buffer": option(socket.SOL_SOCKET, 33, 1 << 20),
}


@attempt
def tun_device():
    if not os.path.exists("/dev/net/tun"):
        return "EPERM"
    fcntl.ioctl(os.open("/dev/net/tun", os.O_RDWR), 0x400454CA, struct.pack("16sH22x", b"tun9", 0x1001))
    return "made"


@attempt
def nft_program():
    done = subprocess.run(["nft", "flush", "ruleset"], capture_output=True, text=True)
    return "flushed" if done.returncode == 0 else "refused"


@attempt
def nft_program_in_user_namespace():
    """It is root there, but not over the sandbox's network."""
    done = subprocess.run(["unshare", "--user", "--map-root-user", "nft", "flush", "ruleset"], capture_output=True, text=True)
    return "flushed" if done.returncode == 0 else "refused"


@attempt
def way_out_in_own_namespaces():
    """Interfaces of its own making lead nowhere: their other ends are in namespaces of its own, or in the sandbox, which it isn't root of."""
    script = (
        "ip link set lo up && ip link add v0 type veth peer name v1 netns 1 || echo refused; "
        "ip link add v2 type veth peer name v3 && ip link set v2 up && ip link set v3 up && ip addr add 10.0.0.1/24 dev v2 && "
        "ip route add default via 10.0.0.2 && timeout 2 bash -c 'echo > /dev/tcp/1.2.3.4/80' && echo connected"
    )
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script], capture_output=True, text=True)
    return done.stdout.strip() or "refused"


# -- what is shared by key or name


@attempt
def session_key():
    """The caller has put one there."""
    key = call(KEY_CALLS[2], 10, -3, b"user", b"sbx-canary", 0)
    buffer = ctypes.create_string_buffer(100)
    call(KEY_CALLS[2], 11, key, buffer, 100)
    return buffer.value.decode()


@attempt
def add_key():
    return call(KEY_CALLS[0], b"user", b"sbx-new", b"x", 1, -4)


@attempt
def request_key():
    """The kernel would run a program on the host, which looks the name up there."""
    return call(KEY_CALLS[1], b"dns_resolver", b"canary.example", b"", 0)


@attempt
def shared_memory():
    return call(SHMGET, int(os.environ["SHARED_MEMORY"]), 0, 0)


@attempt
def message_queue():
    return call(MQ_OPEN, os.environ["QUEUE"].encode(), os.O_RDWR, 0, 0)


@attempt
def message_queue_by_path():
    return os.open("/dev/mqueue/" + os.environ["QUEUE"], os.O_RDWR)


# -- the kernel


@attempt
def load_program():
    return call(BPF, 5, bytes(128), 128)


@attempt
def watch_everything():
    return call(PERF, struct.pack("IIQQQQQ", 1, 112, 0, 0, 0, 0, 0) + bytes(64), -1, 0, -1, 0)


@attempt
def open_by_handle():
    return call(BY_HANDLE, os.open("/", os.O_RDONLY), struct.pack("Ii8s", 8, 1, b"\2\0\0\0\0\0\0\0"), os.O_RDONLY)


@attempt
def kernel_memory():
    for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore"):
        if os.path.exists(path):
            open(path, "rb").read(1)
    raise PermissionError(errno.EPERM, "none")


@attempt
def sysrq():
    return os.open("/proc/sysrq-trigger", os.O_WRONLY)


@attempt
def forwarding():
    return os.open("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY)


@attempt
def host_name():
    name = socket.gethostname()
    if LIBC.sethostname(b"canary", 6) < 0:
        raise OSError(ctypes.get_errno(), "sethostname")
    socket.sethostname(name)
    return "changed"


@attempt
def clock():
    import time

    time.clock_settime(time.CLOCK_REALTIME, time.time())
    return "set"


@attempt
def set_user_id_program():
    """No new privileges: a program that is another user's stays ours."""
    for program in ("/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/usr/bin/mount"):
        if os.path.exists(program) and os.stat(program).st_mode & 0o4000:
            code = f"import os; os.execv({program!r}, ['x', '--help'])"
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            process.wait()
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return fields["NoNewPrivs"].strip()


def main():
    signal.alarm(70)
    told = {}
    for name, function in ATTEMPTS.items():
        try:
            told[name] = str(function())
        except OSError as error:
            told[name] = errno.errorcode.get(error.errno, type(error).__name__)
        except Exception as error:
            told[name] = repr(error)
    json.dump(told, sys.stdout)


main()
