"""Programs that try to get out, to stay, to take everything, or to pass without being right."""

import contextlib
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gemmule.errors import UserError
from gemmule.sandbox import Limits, Outcome, Sandbox, isolation, supervise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can shut programs in")

# What most programs here begin with: things to try, of which those that worked are printed.
ATTEMPTS = """
import ctypes, errno, os, sys
def attempt(name, action, *arguments):
    try:
        result = action(*arguments)
    except BaseException:
        return
    if not (isinstance(result, int) and result < 0):
        print(name)
libc = ctypes.CDLL(None, use_errno=True)
def call(number, elsewhere, *arguments):
    return libc.syscall(number if os.uname().machine == "x86_64" else elsewhere, *arguments)
"""


@pytest.fixture(scope="module", params=isolation.NAMES)
def box(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return Sandbox.open(Limits(wall=60, cpu=60), accept_weaker=True, kind=request.param)
    except UserError as e:
        pytest.skip(str(e))


def limited(box: Sandbox, **limits: float) -> Sandbox:
    return replace(box, limits=replace(box.limits, **limits))  # type: ignore[arg-type]


def nothing_worked(outcome: Outcome) -> None:
    assert (outcome.stdout, outcome.stderr, outcome.status) == ("", "", "passed")


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """Something in the environment of a run's processes, to find them by."""
    mark = secrets.token_hex(16)
    monkeypatch.setitem(isolation.ENVIRONMENT, "MARK", mark)
    return mark


def marked(mark: str) -> list[str]:
    """Processes that have the mark, zombies of this process' own included."""
    collected = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (process / "stat").read_text().rpartition(")")[2].split()
            if stat[0] == "Z" and int(stat[1]) == os.getpid():
                collected.append(f"zombie {process.name}")
            if mark.encode() in (process / "environ").read_bytes():
                collected.append(process.name)
    return collected


@pytest.fixture
def treasure(tmp_path: Path) -> Iterator[Path]:
    """A file of the user's; it must not change."""
    path = tmp_path / "treasure.txt"
    path.write_text("SECRET-OF-THE-USER")
    os.utime(path, (1e9, 1e9))
    before = path.stat()
    yield path
    assert path.read_text() == "SECRET-OF-THE-USER"
    after = path.stat()
    assert (after.st_mode, after.st_mtime, after.st_nlink) == (
        before.st_mode, before.st_mtime, before.st_nlink,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == [path]


# To pass without being right.


def test_leaving_early_is_no_success(box: Sandbox) -> None:
    programs = [
        "import sys; sys.exit(0)",
        "import sys; sys.exit()",
        "raise SystemExit",
        "raise SystemExit('text')",
        "import os; os._exit(0)",
        "import atexit, os; atexit.register(os._exit, 0); import sys; sys.exit(1)",
        "raise KeyboardInterrupt",
        "import threading, os, time\nthreading.Thread(target=os._exit, args=(0,)).start()\n"
        "time.sleep(60)",
        "import ctypes; ctypes.CDLL(None)._exit(0)",
        "class Sly(BaseException):\n    def __str__(self): raise self\nraise Sly",
        "import sys; sys.stdout.close(); sys.stderr.close(); sys.exit(0)",
    ]
    outcomes = box.run_all([program + "\nassert False" for program in programs])
    passed = [p for p, outcome in zip(programs, outcomes, strict=True) if outcome.passed]
    assert passed == []
    assert {outcome.status for outcome in outcomes} == {"failed"}


def test_success_cannot_be_said_without_the_secret(box: Sandbox) -> None:
    lines = ["passed", "started\npassed", f"{'0' * 32} passed", " passed"]
    program = f"""
import os
for fd in range(64):
    for text in {lines}:
        try:
            os.write(fd, text.encode() + b"\\n")
        except OSError:
            pass
os._exit(0)
"""
    assert box.run(program).status == "failed"


def test_the_secret_is_not_where_programs_look(box: Sandbox, mark: str) -> None:
    program = """
import os, re, sys
texts = [str(os.environ), str(sys.argv), str(globals()), str(vars(sys.modules["__main__"]))]
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False)
        texts.append(os.read(fd, 1000).decode())
    except OSError:
        pass
texts.append(sys.stdin.read())
found = re.findall("[0-9a-f]{32}", " ".join(texts))
assert found == [os.environ["MARK"]], found
"""
    assert box.run(program).passed


def test_a_signal_to_itself_is_no_success(box: Sandbox) -> None:
    program = "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(60)"
    outcome = box.run(program)
    assert (outcome.status, outcome.exit_code) == ("killed", -signal.SIGALRM)


# To stay for ever.


def test_without_end(box: Sandbox, mark: str) -> None:
    programs = [
        "while True: pass",
        "import time\nwhile True: time.sleep(1e6)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import signal, time\n"
        "for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(s, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
        "import os, time\nos.closerange(0, 256)\ntime.sleep(1e6)",
        "import threading, time\n"
        "for _ in range(8): threading.Thread(target=time.sleep, args=(1e6,)).start()\n"
        "time.sleep(1e6)",
        "class Stuck:\n    def __del__(self):\n        while True: pass\nx = Stuck()\ndel x",
        "import sys\nclass Out:\n    def flush(self):\n        while True: pass\n"
        "sys.stdout = Out()",
        "import re; re.match('(a*)*b', 'a' * 60)",
    ]
    outcomes = limited(box, wall=0.3).run_all(programs)
    assert [outcome.status for outcome in outcomes] == ["timeout"] * len(programs)
    assert marked(mark) == []


def test_processor_time(box: Sandbox, mark: str) -> None:
    loop = "while True: pass"
    ignoring = f"import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n{loop}"
    plain, stubborn = limited(box, cpu=1).run_all([loop, ignoring])
    assert (plain.status, plain.exit_code) == ("timeout", -signal.SIGXCPU)
    assert (stubborn.status, stubborn.exit_code) == ("killed", -signal.SIGKILL)
    assert marked(mark) == []


def test_becoming_a_daemon(box: Sandbox, mark: str) -> None:
    program = """
import os, signal, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
for step in (os.fork, os.setsid, os.fork):
    try:
        step()
    except OSError:
        print("no")
time.sleep(0.1)
"""
    assert box.run(program).stdout == "no\n" * 3
    assert marked(mark) == []


# To take everything.


def test_fork_bomb(box: Sandbox, mark: str) -> None:
    program = (
        ATTEMPTS
        + """
import multiprocessing, subprocess, threading
for _ in range(8):  # no more than 256, should they start after all
    attempt("fork", os.fork)
    attempt("vfork", lambda: libc.vfork())
    attempt("clone", lambda: call(56, 220, 17, 0, 0, 0, 0))
    how = bytes(32) + (17).to_bytes(8, "little") + bytes(48)
    attempt("clone3", lambda: libc.syscall(435, how, 88))
attempt("spawn", os.posix_spawn, sys.executable, [sys.executable, "-c", ""], {})
attempt("exec", os.execv, sys.executable, [sys.executable, "-c", ""])
attempt("Popen", subprocess.Popen, [sys.executable])
attempt("Process", multiprocessing.get_context("fork").Process(target=print).start)
if os.system("true") == 0:
    print("system")
"""
    )
    nothing_worked(box.run(program))
    assert marked(mark) == []


def test_thread_bomb(box: Sandbox, mark: str) -> None:
    program = """
import threading
threading.stack_size(32768)
while True:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""
    outcome = box.run(program)
    assert outcome.status in {"killed", "failed"}, outcome  # no memory for more is as well
    assert marked(mark) == []
    few = "import threading\nfor _ in range(32): threading.Thread(target=int).start()"
    assert box.run(few).passed


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(1 << 34)",
        "x = []\nwhile True: x.append(bytes(1 << 20))",
        "x = []\nwhile True: x.append([x])",
        "x = 'a' * 99\nwhile True: x += x",
        "import mmap\nx = []\nwhile True:\n"
        "    try:\n        x.append(mmap.mmap(-1, 1 << 20))\n"
        "    except OSError: raise MemoryError",
    ],
)
def test_memory_hog(box: Sandbox, program: str) -> None:
    small = limited(box, memory=128 << 20)
    assert small.run(program).status in {"memory", "failed"}
    assert small.run(f"try:\n    {program.splitlines()[0]}\nexcept MemoryError: pass").passed


def test_memory_hog_is_named(box: Sandbox) -> None:
    assert box.run("x = bytearray(1 << 34)").status == "memory"
    program = "x = []\nwhile True: x.append([x])"
    assert limited(box, memory=128 << 20).run(program).status == "memory"


def test_memory_that_is_counted_nowhere(box: Sandbox) -> None:
    program = (
        ATTEMPTS
        + """
attempt("memfd", lambda: libc.memfd_create(b"x", 0))
attempt("shmget", lambda: libc.shmget(0, 1 << 20, 0o1600))
attempt("mlock", lambda: libc.mlockall(1))
attempt("msgget", lambda: libc.msgget(0, 0o1600))
"""
    )
    nothing_worked(box.run(program))


@pytest.mark.parametrize("fd", [1, 2])
def test_huge_output(box: Sandbox, mark: str, fd: int) -> None:
    program = f"import os\nwhile True: os.write({fd}, b'\\xff' * 65536)"
    outcome = box.run(program)
    assert outcome.status == "output"
    assert len(outcome.stdout + outcome.stderr) == supervise.KEPT
    assert marked(mark) == []


def test_output_that_just_fits(box: Sandbox) -> None:
    small = limited(box, output=100_000)
    assert small.run("print('x' * 99_999)").passed
    assert small.run("print('x' * 100_000)").status == "output"
    wrote = small.run("import sys\nprint('x' * 99_000)\nprint('y' * 999 + 'z', file=sys.stderr)")
    assert wrote.status == "output"
    assert wrote.stdout == "x" * supervise.KEPT
    assert wrote.stderr.endswith("yz\n")


def test_flooding_every_descriptor(box: Sandbox, mark: str) -> None:
    program = """
import os
while True:
    for fd in range(64):
        try:
            os.set_blocking(fd, False)
            os.write(fd, b"{}" * 2048)
        except OSError:
            pass
"""
    assert box.run(program).status == "output"
    assert marked(mark) == []


def test_filling_the_private_folder(box: Sandbox) -> None:
    if not box.isolation.jailed:
        pytest.skip("has no private folder, as its guarantee says")
    small = limited(box, scratch=1 << 20, file=600_000, files=40)
    program = """
def write(name, size):
    try:
        with open(f"/tmp/{name}", "wb") as f:
            f.write(bytes(size))
    except OSError as e:
        return e.errno
import errno, os
assert write("big", 700_000) == errno.EFBIG
os.unlink("/tmp/big")
assert write("a", 500_000) is None
assert write("b", 500_000) is None
assert write("c", 500_000) == errno.ENOSPC
"""
    outcome = small.run(program)
    assert outcome.passed, outcome
    many = "i = 0\nwhile True:\n    open(f'/tmp/{i}', 'w').close()\n    i += 1"
    assert small.run(many).status in {"killed", "failed"}
    assert small.run("import os\nassert not os.path.exists('/tmp/0')").passed


# To reach the user's files.


def test_writing(box: Sandbox, treasure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"gemmule-{secrets.token_hex(8)}"
    home, repository = Path.home(), Path(__file__).parents[2]
    monkeypatch.chdir(treasure.parent)
    places = [
        treasure.parent, home, repository, Path.cwd(), Path("/"), Path("/var/tmp"),
        Path("/usr/lib"), Path("/dev"), Path("/dev/shm"), Path("/etc"), Path("/root"),
        Path(sys.prefix), Path(tempfile.gettempdir()), Path(isolation.view.__file__).parent,
    ]  # fmt: skip
    program = (
        ATTEMPTS
        + f"""
treasure, name = {str(treasure)!r}, {name!r}
for place in {[str(p) for p in places]}:
    if {box.isolation.jailed} and (place + "/").startswith("/tmp/") and os.path.isdir(place):
        continue  # its own /tmp, not the user's
    attempt(place, open, f"{{place}}/{{name}}", "w")
    attempt(place + " mkdir", os.mkdir, f"{{place}}/{{name}}")
    attempt(place + " mkfifo", os.mkfifo, f"{{place}}/{{name}}")
    attempt(place + " symlink", os.symlink, "/", f"{{place}}/{{name}}")
for mode in ("w", "a", "r+", "rb+"):
    attempt("open " + mode, open, treasure, mode)
for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_APPEND | os.O_RDWR):
    attempt(f"open {{flags}}", os.open, treasure, flags)
attempt("tmpfile", os.open, {str(treasure.parent)!r}, os.O_TMPFILE | os.O_RDWR)
how = (2).to_bytes(24, "little")
attempt("openat2", lambda: libc.syscall(437, -100, treasure.encode(), how, 24))
attempt("unlink", os.unlink, treasure)
attempt("rename", os.rename, treasure, treasure + "2")
attempt("truncate", os.truncate, treasure, 0)
attempt("chmod", os.chmod, treasure, 0)
attempt("chown", os.chown, treasure, 1, 1)
attempt("utime", os.utime, treasure)
attempt("link", os.link, treasure, treasure + "2")
attempt("xattr", os.setxattr, treasure, "user.x", b"x")
attempt("rmdir", os.rmdir, {str(treasure.parent)!r})
"""
    )
    nothing_worked(box.run(program))
    assert [str(p / name) for p in places if is_there(p / name)] == []


def is_there(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def test_changing_what_it_may_see(box: Sandbox) -> None:
    before = {p: (p.stat().st_mode, p.stat().st_size) for p in map(Path, box_files(box))}
    program = (
        ATTEMPTS
        + f"""
for path in {[str(p) for p in before]} + ["/runner.py", "/"]:
    attempt("append " + path, open, path, "a")
    attempt("chmod " + path, os.chmod, path, 0)
    attempt("unlink " + path, os.unlink, path)
    attempt("truncate " + path, os.truncate, path, 0)
    attempt("rename " + path, os.rename, path, path + "2")
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        continue
    attempt("fchmod " + path, os.fchmod, fd, 0)
    attempt("futime " + path, os.utime, fd)
    attempt("ftruncate " + path, os.ftruncate, fd, 0)
attempt("chmod /dev/null", os.chmod, "/dev/null", 0)
attempt("unlink /dev/null", os.unlink, "/dev/null")
attempt("chmod /dev/zero", os.chmod, "/dev/zero", 0)
for device in ("sda", "vda", "mem", "kmsg", "tty", "ptmx", "kvm"):
    attempt(device, open, "/dev/" + device, "wb")
"""
    )
    nothing_worked(box.run(program))
    after = {p: (p.stat().st_mode, p.stat().st_size) for p in before}
    assert after == before


def box_files(box: Sandbox) -> list[str]:
    import encodings

    return [
        str(isolation.view.interpreter()),
        str(Path(encodings.__file__)),
        str(isolation.view.RUNNER),
    ]


def test_reading(box: Sandbox, treasure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (box.isolation.jailed or box.isolation.landlocked):
        pytest.skip("can read files, as its guarantee says")
    monkeypatch.setenv("GEMMULE_SECRET", "SECRET-OF-THE-USER")
    program = (
        ATTEMPTS
        + f"""
treasure = {str(treasure)!r}
def show(path):
    with open(path, "rb") as f:
        print(path, f.read(10000))
assert "SECRET" not in str(os.environ)
host = {os.getpid()}
for process in ("self", "1", str(os.getppid()), str(host)):
    for file in ("environ", "cmdline", "maps", "mem", "root" + treasure, "cwd/treasure.txt"):
        attempt(file, show, f"/proc/{{process}}/{{file}}")
for path in (treasure, "/etc/passwd", "/etc/shadow", "/etc/hostname", {str(Path(__file__))!r},
             {sys.argv[0]!r}, "../" * 20 + treasure):
    attempt(path, show, path)
for path in ({str(treasure.parent)!r}, {str(Path.home())!r}, "/home", "/proc", "/sys", "/etc"):
    try:
        found = os.listdir(path)
    except OSError:
        continue
    if not set(found) <= {{".pyenv", "ld.so.cache"}}:  # what leads to the interpreter
        print(path, found)
attempt("handle", lambda: libc.name_to_handle_at(-100, treasure.encode(), bytes(100), bytes(8), 0))
"""
    )
    nothing_worked(box.run(program))


def test_links_lead_nowhere(box: Sandbox, treasure: Path) -> None:
    program = (
        ATTEMPTS
        + f"""
treasure = {str(treasure)!r}
os.chdir("/tmp")
for i, target in enumerate((treasure, "../" * 30 + treasure, "/proc/self/root" + treasure)):
    try:
        os.symlink(target, f"link{{i}}")
    except OSError:
        pass  # the weaker kind makes none at all
    attempt("read", lambda: open(f"link{{i}}").read())
    attempt("write", open, f"link{{i}}", "r+")
    attempt("link", os.link, target, f"hard{{i}}")
    attempt("rename", os.rename, target, f"moved{{i}}")
"""
    )
    nothing_worked(box.run(program))


def test_through_proc(box: Sandbox, treasure: Path) -> None:
    program = (
        ATTEMPTS
        + f"""
for path in ("mem", "exe", "fd/1", "fd/0", "oom_score_adj", "uid_map", "clear_refs", "comm",
             "attr/current", "root" + {str(treasure)!r}, "task/self/mem"):
    attempt(path, open, "/proc/self/" + path, "wb", 0)
for path in ("sys/kernel/core_pattern", "sysrq-trigger", "{os.getpid()}/mem"):
    attempt(path, open, "/proc/" + path, "wb", 0)
"""
    )
    nothing_worked(box.run(program))


# To reach others.


def test_the_network(box: Sandbox) -> None:
    name = f"gemmule-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(f"{folder}/s")
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        letters = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        letters.bind(f"\0{name}-letters")
        for server in (named, abstract):
            server.listen()
        program = (
            ATTEMPTS
            + f"""
import socket, urllib.request
attempt("tcp", socket.create_connection, {tcp.getsockname()!r}, 5)
attempt("url", urllib.request.urlopen, "http://127.0.0.1:{tcp.getsockname()[1]}/", None, 5)
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_VSOCK):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        attempt(f"{{family}} {{kind}}", socket.socket, family, kind)
attempt("pair", socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
one, other = socket.socketpair()  # what an event loop needs
one.send(b"x")
assert other.recv(1) == b"x"
for address in (("127.0.0.1", {udp.getsockname()[1]}), "\\0{name}-letters", "{folder}/s"):
    attempt(f"sendto {{address}}", one.sendto, b"x", address)
    attempt(f"sendmsg {{address}}", one.sendmsg, [b"x"], [], 0, address)
    attempt(f"connect {{address}}", one.connect, address)
attempt("bind", one.bind, "\\0{name}-own")
attempt("ring", lambda: libc.syscall(425, 8, bytes(120)))
import asyncio
asyncio.run(asyncio.sleep(0))
"""
        )
        nothing_worked(box.run(program))
        for server in (tcp, named, abstract):
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()
        for receiver in (udp, letters):
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(10)


def test_signals(box: Sandbox) -> None:
    got = []
    before = signal.signal(signal.SIGURG, lambda number, frame: got.append(number))
    try:
        # SIGURG does not harm a process that gets it by mistake.
        program = (
            ATTEMPTS
            + f"""
import fcntl, resource, signal
host = {os.getpid()}
for target in (host, os.getppid(), 1, 0, -1, -host):
    attempt(f"kill {{target}}", os.kill, target, signal.SIGURG)
attempt("killpg", os.killpg, host, signal.SIGURG)
attempt("tgkill", lambda: libc.tgkill(host, host, signal.SIGURG))
attempt("tkill", lambda: call(200, 130, host, signal.SIGURG))
attempt("sigqueue", lambda: libc.sigqueue(host, signal.SIGURG, None))
attempt("pidfd", os.pidfd_open, host)
read, write = os.pipe()
attempt("owner", fcntl.fcntl, read, fcntl.F_SETOWN, host)
attempt("which", fcntl.fcntl, read, 10, signal.SIGURG)
attempt("ioctl", fcntl.ioctl, read, 0x8901, host.to_bytes(4, "little"))
attempt("prlimit", resource.prlimit, host, resource.RLIMIT_NOFILE, (64, 64))
attempt("priority", os.setpriority, os.PRIO_PROCESS, host, 5)
attempt("affinity", os.sched_setaffinity, host, {{0}})
attempt("session", os.setsid)
attempt("death", lambda: libc.prctl(1, 0))
"""
        )
        nothing_worked(box.run(program))
    finally:
        signal.signal(signal.SIGURG, before)
    assert got == []


def test_the_kernel(box: Sandbox) -> None:
    program = (
        ATTEMPTS
        + f"""
attempt("ptrace", lambda: libc.ptrace(0, 0, 0, 0))
attempt("attach", lambda: libc.ptrace(16, {os.getpid()}, 0, 0))
attempt("seize", lambda: libc.ptrace(0x4206, os.getppid(), 0, 0))
buffer = ctypes.create_string_buffer(64)
attempt("readv", lambda: libc.process_vm_readv({os.getpid()}, buffer, 1, buffer, 1, 0))
attempt("mount", lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
attempt("bind", lambda: libc.mount(b"/", b"/tmp", None, 4096, None))
attempt("remount", lambda: libc.mount(b"none", b"/", None, 32, None))
attempt("umount", lambda: libc.umount2(b"/tmp", 2))
attempt("new mounts", lambda: libc.syscall(428, -100, b"/", 1))
attempt("chroot", os.chroot, "/tmp")
for flags in (0x10000000, 0x20000000, 0x40000000, 0x00020000):
    attempt(f"unshare {{flags:x}}", lambda: libc.unshare(flags))
attempt("setns", lambda: libc.setns(0, 0))
attempt("setuid", os.setuid, 0) if os.getuid() else None
attempt("setgroups", os.setgroups, [0])
attempt("hostname", lambda: libc.sethostname(b"x", 1))
attempt("keyring", lambda: call(250, 219, 0, -3, 0))
attempt("bpf", lambda: call(321, 280, 0, buffer, 64))
attempt("userfaultfd", lambda: call(323, 282, 0))
attempt("unknown", lambda: libc.syscall(10_000))
attempt("reboot", lambda: libc.reboot(0))
attempt("new privileges", lambda: libc.prctl(38, 0, 0, 0, 0))
attempt("no filter", lambda: libc.prctl(22, 0, None))
"""
    )
    nothing_worked(box.run(program))


def test_more_than_it_is_given(box: Sandbox) -> None:
    program = (
        ATTEMPTS
        + """
import resource
for name in dir(resource):
    if name.startswith("RLIMIT_"):
        which = getattr(resource, name)
        soft, hard = resource.getrlimit(which)
        attempt(name, resource.setrlimit, which, (hard, hard))
        attempt(name, resource.setrlimit, which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert resource.getrlimit(which) == (soft, hard)
"""
    )
    nothing_worked(box.run(program))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64")
def test_the_other_system_call_table(box: Sandbox) -> None:
    program = """
import ctypes, mmap
code = bytes.fromhex("b814000000cd80c3")  # mov eax, 20; int 0x80; ret: getpid of 32 bits
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
    outcome = box.run(program)
    assert (outcome.status, outcome.exit_code) == ("killed", -signal.SIGSYS)


# To break things by accident.


def test_broken_programs(box: Sandbox) -> None:
    deep = "import sys\nsys.setrecursionlimit(1 << 30)\n"
    crash = {"failed", "memory", "killed"}
    expected = {
        "def f(): f()\nf()": {"failed"},
        deep + "def f(): return f()\nf()": crash,
        deep + "x = []\nfor _ in range(10**6): x = [x]\nrepr(x)": crash,
        "import os; os.abort()": {"killed"},
        "import ctypes; ctypes.string_at(0)": {"killed"},
        "(" * 100_000: crash,
        "x = " + "-" * 100_000 + "1": crash,
        "x = 1\0": {"failed"},
        "x = '\ud800'": {"failed"},
        "x = 1 # " + "\udcff" * 100: {"failed"},
        "def": {"failed"},
        "": {"passed"},
        "x = 1\r\nif x:\r\n    y = 2\r\n": {"passed"},
        "# -*- coding: latin-1 -*-\nassert 'é' == chr(233)": {"passed"},
        "x = 1\n" * 20_000: {"passed"},
    }
    outcomes = limited(box, memory=128 << 20).run_all(list(expected))
    for (program, allowed), outcome in zip(expected.items(), outcomes, strict=True):
        assert outcome.status in allowed, program[:80]


def test_output_that_is_no_text(box: Sandbox) -> None:
    program = r"import os; os.write(1, b'\xff\x00\xc3\x28'); print('\ud800')"
    outcome = box.run(program)
    assert outcome.passed
    assert outcome.stdout == "\ufffd\0\ufffd(\\ud800\n"


def test_files_mounts_and_descriptors_are_as_before(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    descriptors = Path("/proc/self/fd")

    def state() -> tuple[object, ...]:
        mounts = Path("/proc/self/mountinfo").read_text()
        return mounts, len([*descriptors.iterdir()]), [*tmp_path.iterdir()], marked(mark)

    before = state()
    programs = ["", "1/0", "while True: pass", "import os; os.abort()", "print('x' * 10**7)"] * 2
    limited(box, wall=0.3).run_all(programs, workers=3)
    assert state() == before


def test_nothing_outlives_its_master(box: Sandbox, mark: str, tmp_path: Path) -> None:
    master = f"""
import sys
from gemmule.evals.sandbox import Limits, Sandbox, kinds
kinds.ENVIRONMENT["MARK"] = {mark!r}
box = Sandbox.open(accept_weaker=True, kind={box.kind!r})
print("ready", flush=True)
box.run("import time; time.sleep(1000)")
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", master], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: len(marked(mark)) > 0)
        time.sleep(0.2)  # somewhere in the middle of starting, or after it
        process.kill()
    wait_until(lambda: marked(mark) == [])


def wait_until(condition: object) -> None:
    assert callable(condition)
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it never came to be")
