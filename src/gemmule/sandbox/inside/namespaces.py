"""Runs a command in its own namespaces, as bubblewrap does if it is installed.

`python namespaces.py ORDERS` with ORDERS in marshal's format, in hexadecimal: "view" is a list of
[kind, source, target] of the visible files, "command" the command, "scratch" the number of bytes
and "files" the number of files that fit into /tmp, the only writable folder. The number of the
sandbox's first process is written to the descriptor "info" in bubblewrap's format. The exit code is
the command's, or 128 plus the signal that ended it.

Three more processes are involved: this one, which stays outside the new process namespace so that
it can be waited for; the first one inside, at whose end the kernel ends all others; and, only for
root, a short-lived one that maps the users inside to those outside.
"""

# Importing pathlib, json or typing would take as long as everything else.
# ruff: noqa: PTH102, PTH103, PTH120, PTH211

from __future__ import annotations

import ctypes
import marshal
import os
import signal
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CLONE_NEW = {
    "mount": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # for mount_setattr
_AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = -100, 0x8000, 2
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155}  # 41 on other architectures
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522

INSIDE_USER = 1000
OVERFLOW_USER = 65534  # has no rights on most systems
_BASE = "/tmp"  # every system has it; the new root is mounted over it


def main() -> int:
    """Creates the namespaces and their first process, and waits for it."""
    orders = marshal.loads(bytes.fromhex(sys.argv[1]))
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    unprivileged = _enter_namespaces()
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user resets it
    ready, set_ready = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(orders["info"])  # the parent writes to it, and its content is trusted
        os.read(ready, 1)
        os._exit(_guarded(_first, orders, unprivileged))
    os.write(orders["info"], b'{"child-pid": %d}' % first)
    os.close(orders["info"])
    os.write(set_ready, b"!")
    return _exit_code(os.waitpid(first, 0)[1])


def _guarded(step: Any, *arguments: Any) -> int:
    """The result of a step in a forked process, whose errors must not reach the parent's code."""
    try:
        result: int = step(*arguments)
    except BaseException as e:
        print(e, file=sys.stderr, flush=True)
        return 1
    return result


def _enter_namespaces() -> bool:
    """Enters new namespaces; returns whether the command can run as an unprivileged user.

    Root outside would also own root's files inside. It therefore becomes an unprivileged user if
    the system has one, for which a process outside has to map the users.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _unshare_mapped():
        return True
    if user != 0:
        _call("unshare", sum(_CLONE_NEW.values()))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{INSIDE_USER} {user} 1")
    _write("/proc/self/gid_map", f"{INSIDE_USER} {group} 1")
    return False


def _unshare_mapped() -> bool:
    """Enters new namespaces as root; returns whether an unprivileged user could be mapped."""
    ready, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        os._exit(_guarded(_map_users, os.getppid(), ready))
    os.close(ready)
    try:
        _call("unshare", sum(_CLONE_NEW.values()))
        os.write(go, b"go")
    finally:
        os.close(go)
        _, status = os.waitpid(helper, 0)
    return status == 0


def _map_users(process: int, ready: int) -> int:
    if os.read(ready, 2) != b"go":
        return 1
    try:
        for kind in ("gid", "uid"):
            _write(f"/proc/{process}/{kind}_map", f"0 0 1\n{INSIDE_USER} {OVERFLOW_USER} 1\n")
    except OSError:
        return 1  # a container that does not have this user
    return 0


def _first(orders: dict[str, Any], unprivileged: bool) -> int:
    """The first process inside: mounts the file system, drops all rights, runs the command."""
    _mount_view(orders, INSIDE_USER if unprivileged else 0)
    _call("sethostname", b"sandbox", 7)
    if unprivileged:
        os.setgroups([])
        os.setresgid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
        os.setresuid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
    _drop_rights()
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    command = os.fork()
    if command == 0:
        os._exit(_guarded(os.execv, orders["command"][0], orders["command"]))
    while True:
        pid, status = os.wait()
        if pid == command:
            return _exit_code(status)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _mount_view(orders: dict[str, Any], owner: int) -> None:
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    sources = {source: os.open(source, os.O_PATH) for kind, source, _ in orders["view"]
               if kind != "link"}  # fmt: skip
    _mount("tmpfs", _BASE, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    # Before the view, a part of which may be in it.
    os.mkdir(_BASE + "/tmp")
    _mount("tmpfs", _BASE + "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC,
           f"size={orders['scratch']},nr_inodes={orders['files']},mode=700")  # fmt: skip
    if owner:
        os.chown(_BASE + "/tmp", owner, owner)
    for kind, source, target in orders["view"]:
        place = _BASE + target
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if kind == "link":
            os.symlink(source, place)
            continue
        if kind == "folder":
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o444))
        _mount(f"/proc/self/fd/{sources[source]}", place, None, _MS_BIND | _MS_REC)
        _restrict(place, _RDONLY | _NOSUID | (_NOEXEC if kind == "device" else _NODEV))
    for fd in sources.values():
        os.close(fd)
    os.chdir(_BASE)
    _call("syscall", _PIVOT_ROOT.get(os.uname().machine, 41), b".", b".")
    _call("umount2", b".", _MNT_DETACH)  # the old root, which is now mounted over the new one
    os.chdir("/")
    _restrict("/", _RDONLY | _NOSUID | _NODEV, recursive=False)
    os.chdir("/tmp")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode() if kind else None, flags,
          options.encode())  # fmt: skip


def _restrict(path: str, attributes: int, *, recursive: bool = True) -> None:
    """Sets attributes of the mount at `path` and of those below it; needs Linux 5.12."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, path.encode(),
          _AT_RECURSIVE if recursive else 0, wanted, len(wanted))  # fmt: skip


def _drop_rights() -> None:
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        try:
            _call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError:
            break  # the kernel has no more of them
    _call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))


def _call(function: str, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = getattr(libc, function)(
        *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    )
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
    return result


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as e:
        print(e, file=sys.stderr)
        sys.exit(1)
