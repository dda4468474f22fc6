"""How many workers `auto` means, on file trees as control groups make them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aisix.workers.sizing import Room, auto_workers, look, worker_count

MB = 1_000_000
NO_LIMIT_V1 = "9223372036854771712"


@pytest.mark.parametrize(
    ("room", "workers"),
    [
        (Room(cpus=1), 1),
        (Room(cpus=4), 4),
        (Room(cpus=64), 8),
        (Room(cpus=64, cpu_quota=12.0), 8),
        (Room(cpus=4, cpu_quota=0.1), 1),
        (Room(cpus=4, cpu_quota=1.0), 1),
        (Room(cpus=4, cpu_quota=1.5), 2),
        (Room(cpus=2, cpu_quota=3.0), 2),
        (Room(cpus=8, memory_bytes=64 * MB), 1),
        (Room(cpus=8, memory_bytes=449 * MB), 2),
        (Room(cpus=8, memory_bytes=450 * MB), 3),
        (Room(cpus=2, cpu_quota=2.0, memory_bytes=8_000 * MB), 2),
    ],
)
def test_auto_is_the_tightest_of_all_bounds(room: Room, workers: int):
    assert auto_workers(room) == workers


def tree(root: Path, groups: str, **files: str) -> Path:
    """A system whose process is in `groups`; `__` in names of files is a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "room"),
    [
        ("", {}, Room(4)),
        ("nonsense\n", {}, Room(4)),
        # version 2
        ("0::/\n", {"cpuDOTmax": "150000 100000\n"}, Room(4, 1.5)),
        ("0::/\n", {"cpuDOTmax": "max 100000\n", "memoryDOTmax": "max\n"}, Room(4)),
        ("0::/\n", {"memoryDOTmax": "536870912\n"}, Room(4, None, 536870912)),
        ("0::/a/b\n", {"a__b__cpuDOTmax": "200000 100000"}, Room(4, 2.0)),
        # the group above is tighter
        (
            "0::/a/b\n",
            {"a__b__cpuDOTmax": "200000 100000", "a__cpuDOTmax": "50000 100000"},
            Room(4, 0.5),
        ),
        # the path is the host's, the mount is the container's
        ("0::/docker/0a1b\n", {"cpuDOTmax": "100000 100000"}, Room(4, 1.0)),
        # version 1
        (
            "3:cpu,cpuacct:/a\n2:memory:/a\n",
            {
                "cpu,cpuacct__a__cpuDOTcfs_quota_us": "250000\n",
                "cpu,cpuacct__a__cpuDOTcfs_period_us": "100000\n",
                "memory__a__memoryDOTlimit_in_bytes": "300000000\n",
            },
            Room(4, 2.5, 300_000_000),
        ),
        (
            "3:cpu,cpuacct:/docker/0a1b\n2:memory:/docker/0a1b\n",
            {
                "cpu__cpuDOTcfs_quota_us": "100000",
                "cpu__cpuDOTcfs_period_us": "100000",
                "memory__memoryDOTlimit_in_bytes": "300000000",
            },
            Room(4, 1.0, 300_000_000),
        ),
        (
            "3:cpu:/\n2:memory:/\n",
            {
                "cpu__cpuDOTcfs_quota_us": "-1",
                "cpu__cpuDOTcfs_period_us": "100000",
                "memory__memoryDOTlimit_in_bytes": NO_LIMIT_V1,
            },
            Room(4),
        ),
        # both at once: the tighter one
        (
            "2:memory:/\n0::/\n",
            {"memory__memoryDOTlimit_in_bytes": "900000000", "memoryDOTmax": "700000000"},
            Room(4, None, 700_000_000),
        ),
    ],
)
def test_limits_are_read_in_both_spellings_and_at_every_level(
    tmp_path: Path, groups: str, files: dict[str, str], room: Room
):
    assert look(tree(tmp_path, groups, **files), cpus=4) == room


def test_a_system_without_control_groups_limits_nothing(tmp_path: Path):
    assert look(tmp_path, cpus=3) == Room(3)


def test_this_machine_can_be_looked_at():
    assert 1 <= worker_count("auto") <= 8


def test_a_number_is_taken_as_it_is():
    assert worker_count(12) == 12
