"""A seccomp filter: the system calls that a Python program may make.

All others are refused, including those that are new in a kernel. They fail with ENOSYS as on an
older kernel, for which C libraries have a fallback.
"""

import platform
import struct

_EPERM, _EACCES, _ENOTTY, _ENOSYS = 1, 13, 25, 38

# Numbers on x86-64, and on the architectures that share Linux's generic table; "-": none.
_ALLOWED = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69
pwritev:296:70 preadv2:327:286 pwritev2:328:287 close:3:57 close_range:436:436 stat:4:- fstat:5:80
lstat:6:- newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439
statfs:137:43 fstatfs:138:44 lseek:8:62 readlink:89:- readlinkat:267:78 getdents:78:-
getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 getxattr:191:8 lgetxattr:192:9
fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13 dup:32:23 dup2:33:-
dup3:292:24 pipe:22:- pipe2:293:59 umask:95:166 sendfile:40:71 copy_file_range:326:285 poll:7:-
ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21
epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19
timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 brk:12:214 mmap:9:222
munmap:11:215 mremap:25:216 mprotect:10:226 madvise:28:233 msync:26:227 membarrier:324:283
rseq:334:293 futex:202:98 futex_waitv:449:449 set_robust_list:273:99 set_tid_address:218:96
arch_prctl:158:- sched_yield:24:124 sched_getaffinity:204:123 getcpu:309:168 exit:60:93
exit_group:231:94 wait4:61:260 waitid:247:95 getpid:39:172 getppid:110:173 gettid:186:178
getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150
getgroups:115:158 getpgid:121:155 getpgrp:111:- getsid:124:156 uname:63:160 sysinfo:99:179
getrusage:98:165 times:100:153 getrlimit:97:163 getpriority:140:141
rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 pause:34:- alarm:37:-
setitimer:38:103 getitimer:36:102 timer_create:222:107 timer_settime:223:110 timer_gettime:224:108
timer_delete:226:111 timer_getoverrun:225:109 restart_syscall:219:128 clock_gettime:228:113
clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169 time:201:-
getrandom:318:278 sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 shutdown:48:210
getsockopt:55:209 setsockopt:54:208 getsockname:51:204 getpeername:52:205
"""

# Only if there is a folder to write to. Some of these need just a file opened for reading, and
# would change the timestamps of the user's files.
_WRITING = """
creat:85:- mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:-
renameat:264:38 renameat2:316:276 link:86:- linkat:265:37 symlink:88:- symlinkat:266:36 mknod:133:-
mknodat:259:33 truncate:76:45 ftruncate:77:46 fallocate:285:47 utime:132:- utimes:235:-
futimesat:261:- utimensat:280:88 fsync:74:82 fdatasync:75:83 flock:73:32 open:2:- openat:257:56
"""

# Refused as "not permitted", which programs handle better than "not implemented". chmod is among
# them because inside bubblewrap root owns the real /dev/null.
_REFUSED = """
fork:57:- vfork:58:- execve:59:221 execveat:322:281 socket:41:198 connect:42:203 bind:49:200
listen:50:201 accept:43:202 accept4:288:242 kill:62:129 tkill:200:130 tgkill:234:131
rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240 ptrace:101:117 process_vm_readv:310:270
process_vm_writev:311:271 mount:165:40 umount2:166:39 pivot_root:155:41 chroot:161:51 unshare:272:97
setns:308:268 setuid:105:146 setgid:106:144 setresuid:117:147 setresgid:119:149 setgroups:116:159
chown:92:- fchown:93:55 lchown:94:- fchownat:260:54 setsid:112:157 setpgid:109:154
setpriority:141:140 chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452
sched_setaffinity:203:122 mlock:149:228 mlockall:151:230 memfd_create:319:279
setrlimit:160:164 shmget:29:194 semget:64:190 msgget:68:186 mq_open:240:180 setxattr:188:5
lsetxattr:189:6 fsetxattr:190:7 sync:162:81
"""

# Allowed depending on their arguments; see `_conditions`.
_CONDITIONAL = """
clone:56:220 open:2:- openat:257:56 prctl:157:167 prlimit64:302:261 ioctl:16:29 fcntl:72:25
socketpair:53:199
"""

_ARCHITECTURES = {  # AUDIT_ARCH_*, and the column of the tables
    "x86_64": (0xC000003E, 0),
    "aarch64": (0xC00000B7, 1),
    "riscv64": (0xC00000F3, 1),
}

# Operations of a classic BPF program, and return values of a seccomp filter.
_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_CLONE_THREAD = 0x00010000
_CLONE_NEW_NAMESPACES = 0x7E020000
_OPEN_FOR_WRITING = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # access, creat, trunc, append, tmp
_AF_UNIX, _SOCK_STREAM = 1, 1

_Instruction = tuple[int, int, int, int]


def known_architecture() -> bool:
    """Whether the system calls of this machine are in the tables."""
    return platform.system() == "Linux" and platform.machine() in _ARCHITECTURES


def build_filter(*, writing: bool) -> bytes:
    """The filter for this machine, an array of `struct sock_filter`.

    Args:
        writing: whether files may be created and changed. False: nor opened for writing.

    Raises:
        KeyError: for an architecture that is not in the tables.
    """
    architecture, column = _ARCHITECTURES[platform.machine()]
    program: list[_Instruction] = [
        (_LOAD, 0, 0, 4),  # the architecture: numbers mean other calls on others
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the call's number
    ]
    rules = {number: _return_error(_EPERM) for number in _numbers(_REFUSED, column).values()}
    for name, number in _numbers(_CONDITIONAL, column).items():
        rules[number] = _conditions()[name]
    allowed = _numbers(_ALLOWED + (_WRITING if writing else ""), column)
    rules.update({number: [(_RETURN, 0, 0, _ALLOW)] for number in allowed.values()})
    for number, answer in rules.items():
        program += [(_IF_EQUAL, 0, len(answer), number), *answer]
    program += _return_error(_ENOSYS)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = (entry.split(":") for entry in table.split())
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def _conditions() -> dict[str, list[_Instruction]]:
    """Conditions on the arguments of calls.

    Descriptors can send signals (F_SETOWN and F_SETSIG, or an ioctl), prlimit can change another
    process, and a datagram socket can send to any address. These calls are therefore allowed only
    with the commands that Python's own library uses.
    """
    fcntl = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)  # descriptors, flags, locks, a pipe's size
    ioctl = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # isatty, size, FIONREAD, flags
    prctl = (3, 15, 16, 23, 0x53564D41)  # dumpable?, a thread's name, capability?, a map's name
    return {
        "clone": _masked(0, _CLONE_THREAD | _CLONE_NEW_NAMESPACES, _CLONE_THREAD, _EPERM),
        "open": _masked(1, _OPEN_FOR_WRITING, 0, _EACCES),
        "openat": _masked(2, _OPEN_FOR_WRITING, 0, _EACCES),
        "prctl": _one_of(0, prctl, _EPERM),
        "prlimit64": [  # only to read its own limits; root could raise them
            *_is_zero(0),
            *_is_zero(2),
            *_is_zero(2, upper=True),
            (_RETURN, 0, 0, _ALLOW),
        ],
        "ioctl": _one_of(1, ioctl, _ENOTTY),
        "fcntl": _one_of(1, fcntl, _EPERM),
        "socketpair": [
            _argument(0),
            (_IF_EQUAL, 1, 0, _AF_UNIX),
            *_return_error(_EPERM),
            *_masked(1, 0xF, _SOCK_STREAM, _EPERM),
        ],
    }


def _argument(i: int) -> _Instruction:
    """Loads the lower half of argument `i`: the kernel reads all checked arguments as ints."""
    return (_LOAD, 0, 0, 16 + 8 * i)


def _is_zero(i: int, *, upper: bool = False) -> list[_Instruction]:
    return [(_LOAD, 0, 0, 16 + 8 * i + 4 * upper), (_IF_EQUAL, 1, 0, 0), *_return_error(_EPERM)]


def _return_error(error: int) -> list[_Instruction]:
    return [(_RETURN, 0, 0, _ERRNO | error)]


def _one_of(i: int, values: tuple[int, ...], error: int) -> list[_Instruction]:
    checks = [step for v in values for step in ((_IF_EQUAL, 0, 1, v), (_RETURN, 0, 0, _ALLOW))]
    return [_argument(i), *checks, *_return_error(error)]


def _masked(i: int, mask: int, wanted: int, error: int) -> list[_Instruction]:
    return [_argument(i), (_AND, 0, 0, mask), *_one_of(i, (wanted,), error)[1:]]
