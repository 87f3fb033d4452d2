"""The filter on system calls, run by an interpreter of its instructions, for every architecture."""

import errno
import struct
from collections.abc import Callable

import pytest

from gemmule.sandbox import syscalls

ALLOW, KILL = "allow", "kill"
Verdict = Callable[..., object]

# Numbers that the tests use, from the kernel's headers: x86-64 and the generic table.
NUMBERS = {
    "read": (0, 63), "openat": (257, 56), "clone": (56, 220), "clone3": (435, 435),
    "socket": (41, 198), "socketpair": (53, 199), "kill": (62, 129), "execve": (59, 221),
    "fcntl": (72, 25), "prlimit64": (302, 261), "prctl": (157, 167), "ioctl": (16, 29),
    "unlinkat": (263, 35), "fchmod": (91, 52), "mount": (165, 40), "ptrace": (101, 117),
    "io_uring_setup": (425, 425), "bpf": (321, 280), "utimensat": (280, 88),
}  # fmt: skip
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}


@pytest.fixture(params=[(a, w) for a in ARCHITECTURES for w in (False, True)], ids=str)
def verdict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    """What the filter says to a call, by name or number, with arguments."""
    machine, writing = request.param
    monkeypatch.setattr(syscalls.platform, "machine", lambda: machine)
    program = list(struct.iter_unpack("=HBBI", syscalls.build_filter(writing=writing)))
    audit, column = ARCHITECTURES[machine]

    def run(call: str | int, *arguments: int, architecture: int = audit) -> object:
        number = NUMBERS[call][column] if isinstance(call, str) else call
        padded = [a % 2**64 for a in (*arguments, *[0] * (6 - len(arguments)))]
        return interpret(program, struct.pack("=IIQ6Q", number, architecture, 0, *padded))

    run.writing = writing  # type: ignore[attr-defined]
    return run


def interpret(program: list[tuple[int, ...]], data: bytes) -> object:
    accumulator = at = 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:  # ld [k]
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x54:  # and #k
            accumulator &= k
        elif code == 0x15:  # jeq #k
            at += yes if accumulator == k else no
        else:
            assert code == 0x06  # ret #k
            action, value = k & 0xFFFF0000, k & 0xFFFF
            return {0x7FFF0000: ALLOW, 0x80000000: KILL, 0x00050000: value}[action]


def test_what_everybody_needs(verdict: Verdict) -> None:
    assert verdict("read", 0, 0, 0) == ALLOW
    assert verdict("openat", -100, 0, 0o2000000) == ALLOW  # for reading, to be closed on exec


def test_another_architecture_ends_the_program(verdict: Verdict) -> None:
    assert verdict("read", architecture=0x40000003) == KILL
    assert verdict(0x40000000, 0) == errno.ENOSYS  # x32: its numbers are not in the table


def test_what_nobody_gets(verdict: Verdict) -> None:
    for call in ("socket", "kill", "execve", "mount", "ptrace", "fchmod"):
        assert verdict(call, 1, 1, 1) == errno.EPERM
    for call in ("clone3", "io_uring_setup", "bpf"):
        assert verdict(call, 1, 1, 1) == errno.ENOSYS
    for number in range(450, 1000):
        assert verdict(number) in {errno.ENOSYS, errno.EPERM}


def test_threads_but_no_processes(verdict: Verdict) -> None:
    thread = 0x3D0F00  # as glibc starts one
    assert verdict("clone", thread) == ALLOW
    assert verdict("clone", 17) == errno.EPERM
    assert verdict("clone", 0x01200011) == errno.EPERM
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict("clone", thread | namespace) == errno.EPERM


def test_writing(verdict: Verdict) -> None:
    writing = verdict.writing  # type: ignore[attr-defined]
    for flags in (0o1, 0o2, 0o3, 0o100, 0o1000, 0o2000, 0o20200000 | 0o2, 0o2000000 | 0o1):
        assert verdict("openat", -100, 0, flags) == (ALLOW if writing else errno.EACCES)
    for call in ("unlinkat", "utimensat"):
        assert verdict(call, 1) == (ALLOW if writing else errno.ENOSYS)


def test_signals_through_descriptors(verdict: Verdict) -> None:
    for command in (0, 1, 2, 3, 4, 1030):
        assert verdict("fcntl", 3, command) == ALLOW
    for command in (8, 10, 15, 1024, 1026, 1031):
        assert verdict("fcntl", 3, command) == errno.EPERM
    assert verdict("ioctl", 3, 0x5401) == ALLOW
    for command in (0x8901, 0x8902, 0x5412, 0x541C):  # owner of a socket, typing for others
        assert verdict("ioctl", 3, command) == errno.ENOTTY


def test_sockets_only_in_pairs_that_lead_nowhere(verdict: Verdict) -> None:
    cloexec, stream, datagram = 0o2000000, 1, 2
    assert verdict("socketpair", 1, stream | cloexec, 0) == ALLOW
    assert verdict("socketpair", 1, datagram | cloexec, 0) == errno.EPERM
    assert verdict("socketpair", 2, stream, 0) == errno.EPERM


def test_limits_can_be_asked_for_and_not_set(verdict: Verdict) -> None:
    assert verdict("prlimit64", 0, 7, 0, 0x7FFF00001234) == ALLOW
    assert verdict("prlimit64", 0, 7, 0x7FFF00000000, 0) == errno.EPERM
    assert verdict("prlimit64", 0, 7, 0x1234, 0) == errno.EPERM
    assert verdict("prlimit64", 1, 7, 0, 0x1234) == errno.EPERM


def test_a_process_about_itself(verdict: Verdict) -> None:
    assert verdict("prctl", 15) == ALLOW
    for command in (1, 4, 22, 38, 0x59616D61):
        assert verdict("prctl", command) == errno.EPERM


def test_unknown_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls.platform, "machine", lambda: "s390x")
    assert not syscalls.known_architecture()
    with pytest.raises(KeyError):
        syscalls.build_filter(writing=True)
