"""The machine: which cores to use, limits, memory of processes, and what to say of it beside a result."""

import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = _CORES[0]
LOAD_CORE = _CORES[1] if len(_CORES) > 1 else _CORES[0]


class BenchError(Exception):
    """A measure could not be taken; the message is shown in its row."""


def raise_open_files(want: int) -> None:
    """Let this process, and those it starts, have `want` open files; as root beyond the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < want:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (want, want))
            return
        except (ValueError, OSError) as error:
            raise BenchError(f"needs {want} open files, the limit is {hard}: raise `ulimit -Hn`") from error
    if soft != resource.RLIM_INFINITY and soft < want:
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    pids = [pid]
    for parent in pids:  # grows while it is walked
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                pids.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:  # it has ended meanwhile
            continue
    return pids


def memory_kb(pids: Iterable[int], field: str = "VmRSS") -> float:
    """Resident memory in KiB: ``VmRSS`` now, ``VmHWM`` at its peak since `forget_peak`."""
    total = 0.0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                total += float(line.split()[1])
    return total


def forget_peak(pids: Iterable[int]) -> None:
    """Start ``VmHWM`` anew from what is resident now."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def filesystem(path: Path) -> str:
    """The type of the file system that holds `path`, such as ``ext4``."""
    best, kind = "", "?"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        mount, this = line.split()[1:3]
        if str(path.resolve()).startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, this
    return kind


def scratch_parent() -> Path:
    """A folder for temporary files that is on a disk: what is only in memory would make fsync free."""
    for path in (Path(tempfile.gettempdir()), Path("/var/tmp")):
        if filesystem(path) not in ("tmpfs", "ramfs"):
            return path
    return Path.cwd()


def fsync_us(folder: Path, times: int = 200) -> float:
    """Median time in us to append 4 KiB to a file and fdatasync it: the floor under every durable append."""
    taken = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 4096)
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - begin) * 1e6)
    return sorted(taken)[times // 2]


def syscall_ns(times: int = 200_000) -> float:
    """Time in ns of one small system call from Python.

    Where it is several hundred, as in some virtual machines, what makes one call per message is slowed most.
    """
    getppid = os.getppid
    begin = time.perf_counter()
    for _ in range(times):
        getppid()
    return (time.perf_counter() - begin) * 1e9 / times


class Disturbance:
    """What took CPU time from a measure: other processes of this machine, and its hypervisor."""

    def __init__(self) -> None:
        self._busy, self._stolen, self._all = self._machine()
        self._own = self._ours()

    @staticmethod
    def _machine() -> tuple[float, float, float]:
        words = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        user, nice, system, idle, iowait, irq, softirq, steal = (float(word) for word in words)
        hz = os.sysconf("SC_CLK_TCK")
        in_processes = user + nice + system
        return in_processes / hz, steal / hz, (in_processes + idle + iowait + irq + softirq + steal) / hz

    @staticmethod
    def _ours() -> float:
        ended = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
        seconds = sum(usage.ru_utime + usage.ru_stime for usage in ended)
        for pid in tree(os.getpid())[1:]:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            # utime, stime, and the same of its children that have ended: fields 14 to 17 of proc(5)
            seconds += sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")
        return seconds

    def shares(self) -> dict[str, float]:
        """Since it was made: ``others`` and ``stolen``, as shares of the CPU time of all cores."""
        busy, stolen, everything = self._machine()
        total = max(everything - self._all, 1e-9)
        others = busy - self._busy - (self._ours() - self._own)
        return {"others": max(others, 0.0) / total, "stolen": (stolen - self._stolen) / total}


def describe(folder: Path) -> dict[str, str]:
    """What to print above the results."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line for line in cpuinfo if line.startswith("model name")]
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "CPU": models[0].split(":", 1)[1].strip() if models else platform.machine(),
        "cores": f"{os.cpu_count()} (server on core {SERVER_CORE}, load on core {LOAD_CORE})",
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "disk": f"{filesystem(folder)}, fdatasync of 4 KiB {fsync_us(folder):.0f} us",
        "system call": f"{syscall_ns():.0f} ns",
    }
