"""Run in a sandbox: try to get out in every way known, and print what each attempt met, as JSON by name."""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import signal
import socket
import struct
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWCGROUP, NEWUSER, NEWPID, NEWNET = 0x20000, 0x02000000, 0x10000000, 0x20000000, 0x40000000
ATTEMPTS = {}


def attempt(function):
    ATTEMPTS[function.__name__] = function
    return function


def name_of(error):
    return errno.errorcode.get(error.errno, type(error).__name__) if isinstance(error, OSError) else type(error).__name__


def call(name, *arguments):
    ctypes.set_errno(0)
    result = getattr(LIBC, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def in_child(function):
    """Do it in a child, since it changes the process; what the child printed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(function())
        except BaseException as error:
            text = name_of(error)
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    return text or f"signal {os.WTERMSIG(status)}"


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def userns(more=0):
    user, group = os.geteuid(), os.getegid()
    call("unshare", NEWUSER | more)
    for name, text in ("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1"):
        write(f"/proc/self/{name}", text)


for family, number in {
    "vsock": 40,
    "packet": 17,
    "alg": 38,
    "bluetooth": 31,
    "tipc": 30,
    "can": 29,
    "key": 15,
    "xdp": 44,
    "rds": 21,
    "smc": 43,
}.items():
    ATTEMPTS[f"family_{family}"] = lambda number=number: socket.socket(number, socket.SOCK_DGRAM, 0) and "open"


@attempt
def family_vsock_pair():
    pair = (ctypes.c_int * 2)()
    call("socketpair", 40, socket.SOCK_STREAM, 0, pair)
    return "open"


@attempt
def raw_icmp():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return "open"


@attempt
def raw_icmp6():
    socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    return "open"


def udp(address, port, *options):
    def send():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        started = time.monotonic()
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            for option in options:
                sock.setsockopt(*option)
            try:
                sock.sendto(b"x", (address, port))
            except OSError as error:
                return name_of(error) if time.monotonic() - started < 5 else "slow"
        return "sent"

    return send


ATTEMPTS |= {
    "udp_quic": udp("203.0.113.1", 443),
    "udp_ntp6": udp("2001:db8::1", 123),
    "udp_metadata": udp("169.254.169.254", 80),
    "udp_multicast": udp("224.0.0.251", 5353),
    "udp_multicast6": udp("ff02::fb", 5353),
    "udp_broadcast": udp("255.255.255.255", 67, (socket.SOL_SOCKET, socket.SO_BROADCAST, 1)),
}


@attempt
def udplite():
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
    except OSError:
        return "EPERM"  # this kernel has none
    sock.sendto(b"x", ("203.0.113.1", 443))
    return "sent"


@attempt
def icmp_datagram():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    sock.sendto(b"\x08\0\xf7\xff\0\0\0\0", ("203.0.113.1", 0))
    return "sent"


def talk(sock):
    sock.sendall(b"x")
    return sock.recv(100).decode()


def tcp(address, port):
    def connect():
        with socket.create_connection((address, port), timeout=10) as sock:
            return talk(sock)

    return connect


ATTEMPTS |= {
    "tcp4": tcp("203.0.113.4", 443),
    "tcp6": tcp("2001:db8::6", 8443),
    "tcp_metadata": tcp("169.254.169.254", 80),
    "tcp_dns": tcp("8.8.8.8", 53),
    "tcp_dns_loopback": tcp("127.0.0.53", 53),
}


@attempt
def tcp_host_loopback():
    return tcp("127.0.0.1", int(os.environ["HOST_PORT"]))()


@attempt
def tcp_proxy_port():
    lines = open("/proc/net/tcp").read().splitlines()[1:]
    port = next(int(line.split()[1].split(":")[1], 16) for line in lines if line.split()[3] == "0A")
    return tcp("127.0.0.1", port)()


@attempt
def mptcp():
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError:
        return "hello"  # this kernel has none
    sock.settimeout(10)
    sock.connect(("203.0.113.62", 443))
    return talk(sock)


@attempt
def tcp_fast_open():
    with socket.socket() as sock:
        sock.sendto(b"x", 0x20000000, ("203.0.113.63", 443))
        return sock.recv(100).decode()


def dns(address, *, connected):
    def ask():
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            if connected:
                sock.connect((address, 53))
                sock.send(b"q")
                return sock.recv(100).decode()
            sock.sendto(b"q", (address, 53))
            data, peer = sock.recvfrom(100)
            return data.decode() if peer[:2] == (address, 53) else f"from {peer}"

    return ask


ATTEMPTS |= {
    "dns4": dns("8.8.8.8", connected=False),
    "dns4_connected": dns("9.9.9.9", connected=True),
    "dns6": dns("2001:4860:4860::8888", connected=False),
    "dns_loopback": dns("127.0.0.53", connected=True),
}


@attempt
def own_server_on_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 10) as client:
        server.accept()[0].sendall(b"own")
        return client.recv(10).decode()


@attempt
def setns_of_init():
    call("setns", os.open("/proc/1/ns/net", os.O_RDONLY), NEWNET)
    return "entered"


@attempt
def setns_of_self():
    call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), NEWNET)
    return "entered"


@attempt
def unshare_network():
    return in_child(lambda: (call("unshare", NEWNET) and "left") or "left")


@attempt
def mount_tmpfs():
    call("mount", b"t", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None)
    return "mounted"


@attempt
def unmount_mask():
    call("umount2", os.environ["SCRATCH"].encode() + b"/masked", 2)
    return "unmounted"


@attempt
def unmount_mask_in_user_namespace():
    def go():
        userns(NEWNS)
        call("umount2", os.environ["SCRATCH"].encode() + b"/masked", 2)
        return "unmounted"

    return in_child(go)


@attempt
def ptrace_init():
    call("ptrace", ctypes.c_long(0x4206), ctypes.c_long(1), None, None)
    return "traced"


@attempt
def ptrace_proxy():
    call("ptrace", ctypes.c_long(0x4206), ctypes.c_long(int(os.environ["HOST_PID"])), None, None)
    return "traced"


@attempt
def kill_proxy():
    os.kill(int(os.environ["HOST_PID"]), 0)
    return "reached"


@attempt
def proxy_environment():
    open(f"/proc/{os.environ['HOST_PID']}/environ").read()
    return "read"


@attempt
def init_environment():
    open("/proc/1/environ").read()
    return "read"


@attempt
def init_memory():
    open("/proc/1/mem", "rb").read(1)
    return "read"


@attempt
def init_descriptors():
    os.readlink("/proc/1/fd/0")
    return "read"


@attempt
def foreign_processes():
    return str(len([name for name in os.listdir("/proc") if name.isdigit() and int(name) > 2]))


@attempt
def abstract_socket():
    socket.socket(socket.AF_UNIX).connect("\0" + os.environ["ABSTRACT"])
    return "connected"


@attempt
def masked_directory():
    socket.socket(socket.AF_UNIX).connect(os.environ["SCRATCH"] + "/masked/s")
    return "connected"


@attempt
def masked_socket():
    socket.socket(socket.AF_UNIX).connect(os.environ["SCRATCH"] + "/single")
    return "connected"


@attempt
def kept_in_mask():
    return open(os.environ["SCRATCH"] + "/masked/kept").read()


@attempt
def bound_file():
    return open(os.environ["SCRATCH"] + "/theirs").read()


@attempt
def write_bound_file():
    open(os.environ["SCRATCH"] + "/theirs", "w")
    return "written"


@attempt
def io_uring():
    call("syscall", ctypes.c_long(425), ctypes.c_long(4), ctypes.byref(ctypes.create_string_buffer(120)))
    return "open"


@attempt
def x32():
    if platform.machine() != "x86_64":
        return "ENOSYS"
    call("syscall", ctypes.c_long(0x40000000 + 41), ctypes.c_long(40), ctypes.c_long(1), ctypes.c_long(0))
    return "open"


@attempt
def int_0x80():
    """Ask for the process id by the 32-bit entry; the number is that of another call in 64 bits."""
    if platform.machine() != "x86_64":
        return "ENOSYS"

    def go():
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\0\0\0\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
        result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        return errno.errorcode.get(-result, "open")

    found = in_child(go)
    return "ENOSYS" if found.startswith("signal") else found  # a kernel without that entry


def flush_rules(more):
    from sbxproxy.capture.inside.netlink import ACK, NETLINK_NETFILTER, REQUEST, attribute, exchange, message

    def go():
        if more is not None:
            userns(more)
        boundary = struct.pack("!BBH", 0, 0, 10)
        delete = message(10 << 8 | 2, REQUEST | ACK, 1, struct.pack("!BBH", 1, 0, 0) + attribute(1, b"sbxproxy\0"))
        exchange(NETLINK_NETFILTER, message(0x10, REQUEST, 0, boundary) + delete + message(0x11, REQUEST, 2, boundary), {0, 1})
        return "flushed"

    return in_child(go)


ATTEMPTS |= {
    "flush_rules": lambda: flush_rules(None),
    "flush_rules_in_user_namespace": lambda: flush_rules(0),
}


@attempt
def nested_network():
    """A network namespace of one's own is allowed, and is empty."""

    def go():
        userns(NEWNET)
        return tcp("203.0.113.99", 443)()

    return in_child(go)


@attempt
def core_pattern():
    open("/proc/sys/kernel/core_pattern", "w")
    return "writable"


@attempt
def core_pattern_in_fresh_proc():
    def go():
        userns(NEWNS | NEWPID)
        if os.fork() == 0:
            try:
                call("mount", b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None)
                open("/proc/sys/kernel/core_pattern", "w")
                os._exit(0)
            except OSError as error:
                os._exit(error.errno)
        return errno.errorcode.get(os.waitstatus_to_exitcode(os.wait()[1]), "writable")

    return in_child(go)


@attempt
def uevent_helper():
    if not os.path.exists("/sys/kernel/uevent_helper"):
        return "EROFS"
    open("/sys/kernel/uevent_helper", "w")
    return "writable"


@attempt
def control_groups():
    """The files there stop and kill whatever is in a group."""
    for directory, _, names in os.walk("/sys/fs/cgroup"):
        for name in {"cgroup.procs", "cgroup.kill", "cgroup.freeze", "tasks"} & set(names):
            try:
                os.close(os.open(f"{directory}/{name}", os.O_WRONLY))
            except OSError as error:
                if error.errno not in {errno.EROFS, errno.EACCES, errno.ENOENT}:
                    raise
            else:
                return f"{directory}/{name} can be written"
    return "none"


def control_groups_afresh(*, mapped):
    def go():
        if mapped:
            userns()
        else:
            call("unshare", NEWUSER)
        call("unshare", NEWNS | NEWCGROUP)
        for kind in b"cgroup2", b"cgroup":
            call("mount", b"none", b"/sys/fs/cgroup", kind, ctypes.c_ulong(0), b"freezer" if kind == b"cgroup" else None)
            os.close(os.open("/sys/fs/cgroup/cgroup.procs", os.O_WRONLY))
        return "writable"

    return in_child(go)


ATTEMPTS |= {
    "control_groups_afresh": lambda: control_groups_afresh(mapped=True),
    "control_groups_afresh_by_nobody": lambda: control_groups_afresh(mapped=False),
}


@attempt
def file_capabilities_for_others():
    """A file's capabilities count outside too, for whoever executes it."""
    data = struct.pack("<5I", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
    os.setxattr(os.environ["SCRATCH"] + "/foreign", "security.capability", data)
    return "set"


@attempt
def another_user():
    return in_child(lambda: os.setresuid(1, 1, 1) or "changed")


@attempt
def another_user_in_user_namespace():
    def go():
        call("unshare", NEWUSER)
        write("/proc/self/uid_map", "0 1 1")
        return "mapped"

    return in_child(go)


@attempt
def give_away():
    os.chown(os.environ["SCRATCH"] + "/ours", 1, -1)
    return "given"


@attempt
def inherited_descriptors():
    return ",".join(
        sorted(set(os.listdir("/proc/self/fd")) - {str(os.open("/proc/self/fd", os.O_RDONLY))}, key=int)[:3]
        + [
            name
            for name in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{name}") and os.readlink(f"/proc/self/fd/{name}") == "/etc/passwd"
        ]
    )


@attempt
def type_into_terminal():
    fcntl.ioctl(0, 0x5412, b"x")
    return "typed"


@attempt
def capabilities():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return ",".join(fields[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"))


def main():
    signal.alarm(70)
    told = {}
    for name in ["foreign_processes", *ATTEMPTS]:
        try:
            told.setdefault(name, str(ATTEMPTS[name]()))
        except BaseException as error:
            told[name] = name_of(error)
    json.dump(told, sys.stdout)


main()
