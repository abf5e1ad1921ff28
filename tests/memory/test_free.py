"""Free memory as the kernel and the control groups tell it, read from files as they lie on real machines."""

from pathlib import Path

import pytest

from vitrail.memory import free_memory

MEMINFO = "MemTotal:       24600000 kB\nMemFree:         1000000 kB\nMemAvailable:   16000000 kB\nBuffers: 12 kB\n"
GIB = 2**30


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_machine_without_limits(tmp_path: Path) -> None:
    assert free_memory("cpu", machine(tmp_path, {})) == 16000000 * 1024


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "proc/self/cgroup": "0::/jobs/one\n",
                "sys/fs/cgroup/jobs/one/memory.max": "max\n",
                "sys/fs/cgroup/jobs/one/memory.current": f"{GIB}\n",
                "sys/fs/cgroup/jobs/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/jobs/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/jobs/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
            },
            GIB + GIB // 2,  # the group above allows less, and half a GiB of its use is cache
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",  # a container sees itself as the root
                "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
            },
            0,
        ),
        (
            {
                "proc/self/cgroup": "7:cpu,cpuacct:/x\n4:memory:/docker/abc\n",  # version 1, the path that of the host
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{5 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            4 * GIB,
        ),
    ],
)
def test_a_container_may_have_less(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert free_memory("cpu", machine(tmp_path, files)) == expected


def test_this_machine() -> None:
    assert 2**26 < free_memory("cpu") < 2**44
