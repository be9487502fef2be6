"""Programs that attack the sandbox, by kind, and harmless ones that must pass.

`@PID@` stands for the process that asks, `@PARENT@` for its parent, `@VICTIM@` for a file and
`@OPEN@` for a folder that every user may write, `@SOCKET@`, `@DATAGRAM@`, `@ABSTRACT@` and `@PORT@`
for sockets that somebody listens at.
"""

# ruff: noqa: E501 - programs stand on few lines, so that many can be read together
from __future__ import annotations

_FDS = (
    "import os, stat\nfds = []\nfor n in range(3, 64):\n    try: s = os.fstat(n)\n"
    "    except OSError: continue\n    fds.append(n)\n"
)
_WRITE = _FDS + "for n in fds:\n    try: os.write(n, {0})\n    except OSError: pass\n"
_LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_TRY = "    try: {0}\n    except (OSError, ValueError): pass\n"
_DAEMON = (
    "import os, sys, time\ntry:\n    if os.fork() == 0:\n        os.setsid()\n"
    "        if os.fork() == 0:\n            {0}\n            time.sleep(60)\n        os._exit(0)\n"
    "    time.sleep(0.2)\nexcept OSError: pass\n"
)
_FRAME = "import sys\nframe = sys._getframe()\nwhile frame.f_back: frame = frame.f_back\n"

# None may come out as passed, whatever it does to the report, the tests or the interpreter.
REPORTS = {
    "60 kB of [": _WRITE.format("b'[' * 60000"),
    "60 kB of {": _WRITE.format("b'{\"a\":' * 10000"),
    "a megabyte, with a larger pipe": (
        f"{_FDS}import fcntl\nfor n in fds:\n    try:\n        fcntl.fcntl(n, 1031, 1 << 20)\n"
        "        os.set_blocking(n, False)\n        os.write(n, b'x' * (1 << 20))\n"
        "    except OSError: pass"
    ),
    "invalid UTF-8": _WRITE.format("b'\\xff\\xfe\\x80' * 100"),
    "passed": _WRITE.format("b'passed\\n'"),
    "passed, as JSON": _WRITE.format('b\'{"nonce": "0", "kind": "passed", "detail": ""}\''),
    "kind is a list": _WRITE.format('b\'{"nonce": "", "kind": [], "detail": {}}\''),
    "a kind that is none": _WRITE.format("b'wonderful\\nyes'"),
    "timeout, claimed": _WRITE.format("b'timeout\\n'"),
    "killed, claimed": _WRITE.format("b'killed\\nsignal 9'"),
    "NaN": _WRITE.format("b'NaN'"),
    "a huge integer": _WRITE.format("b'9' * 50000"),
    "zeros": _WRITE.format("bytes(60000)"),
    "a token of zeros": _WRITE.format("b'0' * 64"),
    "an empty line": _WRITE.format("b'\\n'"),
    "an assertion with terminal escapes": _WRITE.format("b'assertion\\n\\x1b[2J\\x07\\x9b'"),
    "an assertion that is long": _WRITE.format("b'assertion\\n' + b'y' * 60000"),
    "a lone surrogate": "raise ValueError('\\ud800' * 600)",
    "text of wide characters": "raise ValueError('\\U0001f600' * 10**6)",
    "closes the report": _FDS + "for n in fds: os.close(n)\n",
    "closes everything": "import os\nos.closerange(0, 64)",
    "replaces the report by a file": (
        f"{_FDS}f = os.open('f', os.O_RDWR | os.O_CREAT)\nfor n in fds: os.dup2(f, n)\n"
    ),
    "replaces the report by its own pipe": (
        f"{_FDS}r, w = os.pipe()\nfor n in fds: os.dup2(w, n)\n"
    ),
    "does not let the report block": _FDS + "for n in fds: os.set_blocking(n, False)\n",
    "fills the report": (
        f"{_FDS}for n in fds:\n    os.set_blocking(n, False)\n    try:\n"
        "        while True: os.write(n, b'x' * 4096)\n    except OSError: pass"
    ),
    "reads what can be read and sends it": (
        f"{_FDS}data = b''\nfor n in fds:\n    os.set_blocking(n, False)\n    try: data += "
        "os.read(n, 9999)\n    except OSError: pass\nfor n in fds:\n    try: os.write(n, data)\n"
        "    except OSError: pass"
    ),
    "opens the pipes again and reads": (
        f"{_FDS}data = b''\nfor n in fds:\n    try:\n        f = os.open(f'/proc/self/fd/{{n}}', "
        "os.O_RDONLY | os.O_NONBLOCK)\n        data += os.read(f, 9999)\n    except OSError: pass\n"
        "for n in fds:\n    try: os.write(n, data)\n    except OSError: pass\nos._exit(0)"
    ),
}
FORGERIES = {
    "sends what frames know": (
        f"{_FRAME}{_FDS}import itertools\nf = sys._getframe()\nseen = []\nwhile f:\n"
        "    seen += [v for v in f.f_locals.values()]\n    f = f.f_back\n"
        "for v in list(seen):\n    if isinstance(v, dict): seen += list(v.values())\n"
        "for v in seen:\n    if isinstance(v, (str, bytes)) and 16 <= len(v) <= 64:\n"
        "        for n in fds:\n"
        "            try: os.write(n, v if isinstance(v, bytes) else v.encode())\n"
        "            except OSError: pass\nos._exit(0)"
    ),
    "sends what the collector knows": (
        f"{_FDS}import gc, re\nfound = set()\nfor o in gc.get_objects():\n"
        "    for v in gc.get_referents(o):\n"
        "        if isinstance(v, (str, bytes)) and len(v) == 64: found.add(v)\n"
        "for v in found:\n    v = v if isinstance(v, bytes) else v.encode()\n"
        "    if re.fullmatch(b'[0-9a-f]{64}', v):\n        os.write(max(fds), v)\n"
        "        os.write(min(fds), v)\nos._exit(0)"
    ),
    "changes the runner's names": (
        "import sys\nm = sys.modules['__main__']\nfor n in list(vars(m)):\n"
        "    if not n.startswith('__'): setattr(m, n, lambda *a, **k: ('passed', ''))"
    ),
    "changes the runner's end": (
        f"{_FRAME}m = frame.f_globals\nm['_end'].__code__ = (lambda *a: None).__code__"
    ),
    "moves the runner's frame": (
        "import sys\ntarget = sys._getframe().f_back\ndef jump(f, e, a):\n"
        "    for line in range(target.f_lineno - 3, target.f_lineno + 6):\n"
        "        try: f.f_lineno = line\n        except ValueError: pass\n    return jump\n"
        "target.f_trace = jump\nsys.settrace(jump)"
    ),
    "writes the runner's locals": (
        "import sys\nf = sys._getframe().f_back\nfor n in list(f.f_locals):\n"
        "    f.f_locals[n] = lambda *a: None"
    ),
    "replaces os.write": "import os\nos.write = lambda *a: 0",
    "replaces os._exit": "import os\nos._exit = lambda *a: None",
    "replaces json": "import json\njson.dumps = lambda *a: '{}'",
    "replaces AssertionError": "import builtins\nbuiltins.AssertionError = ValueError",
    "replaces BaseException": "import builtins\nbuiltins.BaseException = ()",
    "replaces exec": "import builtins\nbuiltins.exec = lambda *a: None",
    "swallows exceptions": "import sys\nsys.excepthook = lambda *a: None",
    "registers an exit of 0": "import atexit, os\natexit.register(os._exit, 0)",
    "a thread that outlives": (
        "import threading, time\ntry: threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "except RuntimeError: pass"
    ),
    "a thread that exits": (
        "import threading, os\ntry: threading.Timer(0.05, os._exit, (0,)).start()\n"
        "except RuntimeError: pass\nimport time\ntime.sleep(0.2)"
    ),
    "asserts that are optimised": "import sys\nsys.flags\n__debug__",
    "a fork that ends well": (
        "import os\ntry:\n    if os.fork() == 0: os._exit(0)\nexcept OSError: pass"
    ),
    "an exec that ends well": "import os\nos.execv('/bin/true', ['true'])",
}
EXITS = {
    "os._exit(0)": "import os\nos._exit(0)",
    "os._exit(1)": "import os\nos._exit(1)",
    "os._exit(122), as the watcher for files": "import os\nos._exit(122)",
    "os._exit(125), as the watcher without walls": "import os\nos._exit(125)",
    "os._exit(255)": "import os\nos._exit(255)",
    "sys.exit()": "import sys\nsys.exit()",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "sys.exit('passed')": "import sys\nsys.exit('passed')",
    "sys.exit of a huge integer": "import sys\nsys.exit(10**5000)",
    "quit()": "quit()",
    "raises SystemExit with an object": "raise SystemExit(object())",
    "raises GeneratorExit": "raise GeneratorExit",
    "raises StopIteration": "raise StopIteration",
    "raises KeyboardInterrupt": "raise KeyboardInterrupt",
    "raises a group": "raise BaseExceptionGroup('g', [SystemExit(0)])",
    "an error whose text exits": (
        "import os\nclass E(Exception):\n    def __str__(self): os._exit(0)\nraise E"
    ),
    "an error whose text loops": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E"
    ),
    "an error whose class lies": (
        "class M(type):\n    __name__ = property(lambda c: 1 / 0)\n"
        "class E(Exception, metaclass=M): pass\nraise E"
    ),
    "an error with a cause a thousand deep": (
        "e = ValueError()\nfor _ in range(10000):\n    n = ValueError()\n    n.__context__ = e\n"
        "    e = n\nraise e"
    ),
    "the exit of the C library": _LIBC + "libc.exit(0)",
    "_exit of the C library": _LIBC + "libc._exit(0)",
    "quick_exit": _LIBC + "libc.quick_exit(0)",
    "Py_Exit": "import ctypes\nctypes.pythonapi.Py_Exit(0)",
    "abort": "import os\nos.abort()",
    "kills itself": "import os\nos.kill(os.getpid(), 9)\nos._exit(0)",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nimport time\n"
    "time.sleep(60)",
    "ends itself politely": "import os\nos.kill(os.getpid(), 15)\nos._exit(0)",
    "an alarm": "import signal, time\nsignal.alarm(1)\ntime.sleep(60)",
}
CRASHES = {
    "reads address 0": "import ctypes\nctypes.string_at(0)",
    "writes address 1": "import ctypes\nctypes.memset(1, 0, 8)",
    "overflows the stack in C": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nclass A:\n"
        "    def __getattr__(self, n): return getattr(self, n)\nA().x"
    ),
    "recursion of Python": "import sys\nsys.setrecursionlimit(10**8)\ndef f(): return f()\nf()",
    "nested lists shown": "x = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
    "nested brackets compiled": "eval('(' * 10**5 + ')' * 10**5)",
    "source of brackets": "(" * 5000 + ")" * 5000,
    "source of minus signs": "x = " + "-" * 100000 + "1",
    "source with a NUL": "x = '\0'",
    "source with a lone surrogate": "x = '\ud800'\n",
    "a long integer as source": "x = " + "9" * 10000,
    "a broken code object": "exec((lambda: 0).__code__.replace(co_code=b'\\xff\\x00' * 50))",
    "frees what it uses": _LIBC + "libc.free(ctypes.c_void_p(id(object())))\nlibc.abort()",
    "deletes builtins": "import builtins\nfor n in dir(builtins):\n    try: delattr(builtins, n)\n"
    "    except Exception: pass",
    "clears its modules": "import sys\nsys.modules.clear()\nimport nothing",
}
LOOPS = {
    "loops": "while True: pass",
    "sleeps": "import time\ntime.sleep(60)",
    "sleeps in another session": "import os, time\ntry: os.setsid()\nexcept OSError: pass\n"
    "time.sleep(60)",
    "ignores all signals": (
        "import signal\nfor n in range(1, 65):\n"
        + _TRY.format("signal.signal(n, signal.SIG_IGN)")
        + "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ),
    "blocks all signals": (
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(60)"
    ),
    "raises its limits": (
        "import resource\nfor n in range(16):\n"
        + _TRY.format("resource.setrlimit(n, (resource.RLIM_INFINITY,) * 2)")
        + "while True: pass"
    ),
    "a power of powers": "x = 9**9**9",
    "a regular expression": "import re\nre.match('(a+)+$', 'a' * 100 + 'b')",
    "sorts for ever": (
        "class A:\n    def __lt__(self, o):\n        while True: pass\nsorted([A(), A()])"
    ),
    "a lock that nobody opens": "import threading\nl = threading.Lock()\nl.acquire()\nl.acquire()",
    "reads a FIFO": "import os\nos.mkfifo('f')\nopen('f').read()",
    "does not die with its parent": _LIBC + "libc.prctl(1, 0, 0, 0, 0)\nwhile True: pass",
    "a clean-up that loops": (
        "class A:\n    def __del__(self):\n        while True: pass\na = A()\ndel a"
    ),
}
PROCESSES = {
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "a fork bomb that sleeps": (
        "import os, time\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n"
        "except OSError: pass\ntime.sleep(60)"
    ),
    "a fork bomb of leaders": (
        "import os\nwhile True:\n    try:\n        if os.fork() == 0: os.setsid()\n"
        "    except OSError: pass"
    ),
    "threads": (
        "import threading, time\ntry:\n    while True: threading.Thread(target=time.sleep, "
        "args=(60,)).start()\nexcept RuntimeError: pass"
    ),
    "a daemon": _DAEMON.format("pass"),
    "a daemon that closes everything": _DAEMON.format("os.closerange(0, 64)"),
    "a daemon that ignores signals": _DAEMON.format(
        "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]"
    ),
    "a daemon that is another program": _DAEMON.format("os.execv('/bin/sleep', ['sleep', '77'])"),
    "a daemon that does not die with its parent": _DAEMON.format(
        "import ctypes; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)"
    ),
    "a daemon that fills memory": _DAEMON.format("x = [bytearray(1 << 20) for _ in range(4000)]"),
    "a daemon that stops": _DAEMON.format("os.kill(os.getpid(), 19)"),
    "a chain of forks": (
        "import os, time\ntry:\n    for _ in range(1000):\n        if os.fork(): os._exit(0)\n"
        "except OSError: pass\ntime.sleep(60)"
    ),
    "a child by vfork": "import subprocess\nsubprocess.Popen(['/bin/sleep', '78'])",
    "a child in a new session": (
        "import subprocess\nsubprocess.Popen(['/bin/sleep', '79'], start_new_session=True)"
    ),
    "a process that multiplies when hit": (
        "import os, signal\ndef more(*a):\n    try: os.fork()\n    except OSError: pass\n"
        "for n in (1, 2, 15, 17): signal.signal(n, more)\nmore()\nwhile True: pass"
    ),
    "becomes the subreaper": _LIBC + "libc.prctl(36, 1, 0, 0, 0)\n" + _DAEMON.format("pass"),
    "a process by clone": (
        f"{_LIBC}import time\nif libc.syscall(56, 17, 0, 0, 0, 0) == 0:\n    time.sleep(60)"
    ),
    "a process by clone3": _LIBC + "libc.syscall(435, ctypes.create_string_buffer(88), 88)",
}
OTHERS = {
    "kills the evaluator": "import os\nos.kill(@PID@, 9)",
    "stops the evaluator": "import os\nos.kill(@PID@, 19)",
    "kills the evaluator's parent": "import os\nos.kill(@PARENT@, 9)",
    "kills its own parent": "import os\nos.kill(os.getppid() or 1, 9)",
    "stops its own parent": "import os\nos.kill(os.getppid() or 1, 19)",
    "kills its group": "import os\nos.killpg(0, 9)\nos._exit(0)",
    "stops its group": "import os\nos.killpg(0, 19)\nos._exit(0)",
    "kills everybody": "import os\nos.kill(-1, 9)\nos._exit(0)",
    "kills whom it sees": (
        "import os\nfor p in os.listdir('/proc'):\n    if p.isdigit() and int(p) != os.getpid():\n"
        "        try: os.kill(int(p), 9)\n        except OSError: pass"
    ),
    "kills by number": (
        "import os\nfor p in range(2, 40000):\n    if p != os.getpid():\n"
        "        try: os.kill(p, 9)\n        except OSError: pass"
    ),
    "kills through a descriptor": (
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(@PID@), 9)"
    ),
    "queues a signal": _LIBC + "libc.sigqueue(@PID@, 9, 0)",
    "kills a thread": _LIBC + "libc.syscall(234, @PID@, @PID@, 9)\nlibc.syscall(200, @PID@, 9)",
    "traces the evaluator": _LIBC
    + "libc.ptrace(16, @PID@, 0, 0)\nlibc.ptrace(0x4206, @PID@, 0, 0)",
    "traces its parent": _LIBC + "import os\nlibc.ptrace(16, os.getppid(), 0, 0)",
    "writes the evaluator's memory": "open('/proc/@PID@/mem', 'r+b').write(b'x')",
    "reads the evaluator's environment": "open('/proc/@PID@/environ').read()",
    "offers the evaluator to the OOM killer": "open('/proc/@PID@/oom_score_adj', 'w').write('1000')",
    "reads the evaluator's memory": (
        _LIBC
        + "b = ctypes.create_string_buffer(64)\nv = (ctypes.c_size_t * 2)(ctypes.addressof(b), "
        "64)\nassert libc.process_vm_readv(@PID@, v, 1, v, 1, 0) > 0"
    ),
    "limits the evaluator": "import resource\nresource.prlimit(@PID@, resource.RLIMIT_CPU, (0, 0))",
    "slows the evaluator": "import os\nos.setpriority(os.PRIO_PROCESS, @PID@, 19)",
    "pins the evaluator": "import os\nos.sched_setaffinity(@PID@, {0})",
    "has signals sent to the evaluator": (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, @PID@)\n"
        "fcntl.fcntl(r, 10, 9)\nfcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')"
    ),
    "enters the evaluator's namespaces": (
        _LIBC + "import os\nf = os.open('/proc/@PID@/ns/mnt', os.O_RDONLY)\nlibc.setns(f, 0)"
    ),
    "leaves for namespaces of its own": _LIBC + "assert libc.unshare(0x10000000) == 0",
    "is traced": _LIBC + "libc.ptrace(0, 0, 0, 0)\nimport os\nos.kill(os.getpid(), 19)",
    "shared memory of System V": _LIBC + "assert libc.shmget(0, 1 << 20, 0o1666) >= 0",
    "semaphores of System V": _LIBC + "assert libc.semget(0, 4, 0o1666) >= 0",
    "a queue of System V": _LIBC + "assert libc.msgget(0, 0o1666) >= 0",
    "a POSIX queue": _LIBC + "assert libc.mq_open(b'/q', 0o102, 0o666, None) >= 0",
    "a key": _LIBC + "assert libc.syscall(248, b'user', b'k', b'x', 1, -5) >= 0",
}
SOCKETS = {
    "a TCP server": "import socket\nsocket.create_connection(('127.0.0.1', @PORT@), 1).send(b'x')",
    "a path": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('@SOCKET@')\ns.send(b'x')",
    "an abstract name": (
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0@ABSTRACT@')\ns.send(b'x')"
    ),
    "a datagram": (
        "import socket\na, b = socket.socketpair(type=socket.SOCK_DGRAM)\n"
        "a.sendto(b'x', '@DATAGRAM@')"
    ),
    "a raw pair": (
        "import socket\na, b = socket.socketpair(type=socket.SOCK_RAW)\na.sendto(b'x', '@DATAGRAM@')"
    ),
    "a pair of streams": (
        "import socket\na, b = socket.socketpair()\nb.close()\na.connect('@SOCKET@')\na.send(b'x')"
    ),
    "a sequence of packets": (
        "import socket\na, b = socket.socketpair(type=socket.SOCK_SEQPACKET)\n"
        "a.sendto(b'x', '@DATAGRAM@')"
    ),
    "a name of its own": "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0mine')",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a ring": _LIBC + "assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0",
}
FILES = {
    "writes a file of others": "open('@VICTIM@', 'a').write('changed')",
    "deletes a file of others": "import os\nos.remove('@VICTIM@')",
    "truncates a file of others": "import os\nos.truncate('@VICTIM@', 0)",
    "makes a file elsewhere": "open('@OPEN@/made', 'w').write('x')",
    "makes a link elsewhere": "import os\nos.symlink('/etc/passwd', '@OPEN@/made')",
    "makes a folder elsewhere": "import os\nos.mkdir('@OPEN@/made')",
    "renames a file of others": "import os\nos.rename('@VICTIM@', '@OPEN@/made')",
    "leaves files in shared places": (
        "for p in ('/tmp', '/var/tmp', '/dev/shm', '/run', '/'):\n"
        + _TRY.format("open(p + '/left', 'w').write('x')")
    ),
    "leaves folders in shared places": (
        "import os\nfor p in ('/tmp', '/var/tmp', '/dev/shm'):\n"
        + _TRY.format("os.makedirs(p + '/left/a/b'); open(p + '/left/a/f', 'w').close()")
    ),
    "shared memory": (
        "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, "
        "size=1 << 20)"
    ),
    "1,500 nested folders": "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')",
    "nested folders with long names": (
        "import os\nfor _ in range(400): os.mkdir('d' * 255); os.chdir('d' * 255)"
    ),
    "nested folders that are closed": (
        "import os\nfor _ in range(50): os.mkdir('d'); os.chdir('d')\n"
        "for _ in range(50): os.chdir('..'); os.chmod('d', 0)"
    ),
    "closes its own folder": "import os\nos.mkdir('d')\nopen('d/f', 'w').close()\nos.chmod('.', 0)",
    "many small files": ("n = 0\nwhile True:\n    open(f'f{n}', 'w').write('x')\n    n += 1"),
    "many folders": "import os\nn = 0\nwhile True:\n    os.mkdir(f'd{n}')\n    n += 1",
    "many links to one file": (
        "import os\nopen('f', 'w').close()\nn = 0\nwhile True:\n    os.link('f', f'l{n}')\n    n += 1"
    ),
    "many large files": (
        "n = 0\nwhile True:\n    open(f'f{n}', 'wb').write(bytes(1 << 20))\n    n += 1"
    ),
    "large files that are closed to all": (
        "import os\nos.mkdir('d')\nfor n in range(999):\n    open(f'd/{n}', 'wb').write(bytes(1 << 20))"
        "\n    os.chmod(f'd/{n}', 0)"
    ),
    "a sparse file": "open('f', 'wb').truncate(1 << 40)",
    "a file that is too large": "open('f', 'wb').write(bytes(1 << 25))",
    "allocates without writing": (
        "import os\nfor n in range(99): os.posix_fallocate(os.open(f'f{n}', 66), 0, 1 << 24)"
    ),
    "links that lead outside": (
        "import os\nos.symlink('@OPEN@', 'out')\nos.symlink('/', 'root')\nos.symlink('.', 'loop')\n"
        "os.mkdir('d')\nos.symlink('@OPEN@', 'd/out')"
    ),
    "exchanges a folder for a link": (
        "import os\ntry: child = os.fork()\nexcept OSError: child = 1\nos.makedirs('a', exist_ok=True)\n"
        "end = __import__('time').monotonic() + 0.5\nwhile __import__('time').monotonic() < end:\n"
        "    try:\n        os.rename('a', 'b'); os.symlink('@OPEN@', 'a')\n"
        "        os.remove('a'); os.rename('b', 'a')\n    except OSError: pass"
    ),
    "names that are no text": (
        "import os\nfor n in (b'\\xff\\xfe', b'-rf', b' ', b'\\n', b'*', b'\\x1b[2J'): "
        "open(n, 'w').close()"
    ),
    "pipes and sockets as files": (
        "import os, stat\nos.mkfifo('p')\n"
        "try: os.mknod('s', stat.S_IFSOCK | 0o666)\nexcept OSError: pass"
    ),
    "a program with the right of its owner": (
        "import os, shutil\nshutil.copy('/bin/true', 't')\nos.chmod('t', 0o6777)"
    ),
    "removes its folder": "import os\np = os.getcwd()\nos.chdir('/')\nos.rmdir(p)",
    "moves its folder": "import os\nos.rename(os.getcwd(), '/tmp/elsewhere')",
}
MEMORY = {
    "one block": "x = bytearray(1 << 33)",
    "many blocks": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "a list that grows": "x = [0]\nwhile True: x += x",
    "text that grows": "x = 'x'\nwhile True: x += x",
    "an error out of memory": (
        "x = []\ntry:\n    while True: x.append(bytearray(1 << 16))\nexcept MemoryError:\n    raise"
    ),
    "processes together": (
        "import os, time\ntry:\n    for _ in range(31):\n        if os.fork() == 0: break\n"
        "except OSError: pass\nx = bytearray(b'x' * (100 << 20))\ntime.sleep(60)"
    ),
    "shared maps": (
        "import mmap, os, time\nm = mmap.mmap(-1, 60 << 20)\nm.write(b'x' * (60 << 20))\ntry:\n"
        "    for _ in range(31): os.fork()\nexcept OSError: pass\ntime.sleep(60)"
    ),
    "files in memory": (
        "import os\nfds = []\nwhile True:\n    f = os.memfd_create('m')\n    fds.append(f)\n"
        "    os.write(f, bytes(1 << 24))"
    ),
    "locked": _LIBC + "assert libc.mlockall(3) == 0\nx = bytearray(1 << 28)",
    "output": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "errors": "import os\nwhile True: os.write(2, b'x' * 65536)",
    "descriptors": "import os\nx = []\nwhile True: x.append(os.dup(0))",
    "pipes that are full": (
        "import os\nx = []\nwhile True:\n    p = os.pipe()\n    x.append(p)\n    os.write(p[1], "
        "bytes(65536))"
    ),
}
KINDS = {
    "reports": REPORTS,
    "forgeries": FORGERIES,
    "exits": EXITS,
    "crashes": CRASHES,
    "loops": LOOPS,
    "processes": PROCESSES,
    "others": OTHERS,
    "sockets": SOCKETS,
    "files": FILES,
    "memory": MEMORY,
}
_FAILS = "\nassert 1 == 2\n"
# Crashes, loops and exits never come to an end; the others come to tests that fail.
HOSTILE = {
    f"{kind}: {name}": program + ("" if kind in ("crashes", "loops", "exits") else _FAILS)
    for kind, programs in KINDS.items()
    for name, program in programs.items()
}

HARMLESS = {
    "arithmetic": "import math, decimal, fractions\nassert math.gcd(4, 6) == 2",
    "the usual imports": (
        "import abc, array, bisect, collections, copy, dataclasses, datetime, enum, functools, "
        "hashlib, heapq, itertools, json, operator, os, random, re, statistics, string, sys, "
        "tempfile, textwrap, time, typing, unittest, uuid, zlib, socket, subprocess, threading"
    ),
    "an exception that is caught": "try: 1 / 0\nexcept ZeroDivisionError: pass",
    "an exit that is caught": "import sys\ntry: sys.exit(1)\nexcept SystemExit: pass",
    "recursion": "def f(n): return n and f(n - 1)\nassert f(500) == 0",
    "much output": "for _ in range(10000): print('x' * 100)",
    "files": (
        "import os, shutil, tempfile\nwith tempfile.TemporaryDirectory(dir='.') as d:\n"
        "    open(d + '/f', 'w').write('x' * 100000)\n    os.rename(d + '/f', d + '/g')\n"
        "    os.makedirs(d + '/a/b')\n    shutil.copy(d + '/g', d + '/a/b/h')\n"
        "    os.chmod(d + '/g', 0o600)\n    os.truncate(d + '/g', 5)"
    ),
    "events": (
        "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 3\n"
        "assert asyncio.run(f()) == 3"
    ),
    "a database": (
        "import sqlite3\nc = sqlite3.connect('d.db')\nc.execute('create table t (x)')\n"
        "c.execute('insert into t values (1)')\nc.commit()"
    ),
    "a signal to itself": (
        "import os, signal\nseen = []\nsignal.signal(signal.SIGUSR1, lambda *a: seen.append(1))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\nassert seen == [1]"
    ),
    "a pair of sockets": (
        "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'"
    ),
    "nothing to read": "import sys\nassert sys.stdin.read() == ''",
    "devices": (
        "import os\nopen('/dev/null', 'w').write('x')\nassert len(os.urandom(8)) == 8\n"
        "assert open('/dev/zero', 'rb').read(2) == bytes(2)"
    ),
    "fifty megabytes": "x = bytearray(50 << 20)\nassert len(x) == 50 << 20",
    "its own folder": "import os\nassert os.listdir() == []\nassert os.access('.', os.W_OK)",
    "nested folders": "import os\nfor _ in range(100): os.mkdir('d'); os.chdir('d')",
    "its limits": "import resource\nassert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)",
    "an import of ctypes": "import ctypes\nassert ctypes.CDLL(None).getpid() > 0",
}
TOGETHER = {
    "threads": (
        "import threading\nx = []\nt = [threading.Thread(target=x.append, args=(n,)) for n in "
        "range(8)]\n[a.start() for a in t]\n[a.join() for a in t]\nassert len(x) == 8"
    ),
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as p:\n"
        "    assert sum(p.map(abs, range(9))) == 36"
    ),
    "a command": (
        "import subprocess\nassert subprocess.run(['/bin/echo', 'x'], capture_output=True).stdout "
        "== b'x\\n'"
    ),
    "a child": (
        "import os\np = os.fork()\nif p == 0: os._exit(3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) == 3"
    ),
    "a child that it ends": (
        "import os, time\np = os.fork()\nif p == 0: time.sleep(60)\nos.kill(p, 9)\nos.waitpid(p, 0)"
    ),
}
