"""What is read from /proc, from texts as the kernel writes them."""

from __future__ import annotations

import os
import socket

import pytest

from bench import proc

STAT = "4711 (a (b) c) S 42 4711 4711 0 -1 4194560 1 2 0 0 250 50 0 0 20 0 3 0 1 2 3"
STATUS = "Name:\tpython\nVmHWM:\t  70000 kB\nVmRSS:\t   66560 kB\nThreads:\t3\n"
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid timeout inode
   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100
   1: 0100007F:0BB8 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 101
   2: 0100007F:D431 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000     0        0 102
   3: 0100007F:0BB8 0100007F:D432 06 00000000:00000000 00:00000000 00000000     0        0 0
"""


def test_the_parent_is_found_behind_a_name_with_brackets():
    assert proc.parse_stat_parent(STAT) == 42


def test_user_and_system_time_are_added():
    assert proc.parse_stat_cpu_s(STAT, ticks_per_s=100) == pytest.approx(3.0)


def test_scheduler_statistics_are_nanoseconds():
    assert proc.parse_schedstat_s("1500000000 77 3\n") == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("field", "expected"), [("VmRSS", 66560), ("VmHWM", 70000), ("Vm", 0), ("Pss", 0)]
)
def test_a_field_in_kb_is_read_by_its_whole_name(field, expected):
    assert proc.parse_kb(STATUS, field) == expected


def test_only_open_connections_to_the_port_count():
    assert proc.parse_established(TCP, 3000) == {"101"}


def test_this_process_has_memory_and_cpu_time():
    pids = proc.tree(os.getpid())
    assert pids[0] == os.getpid()
    assert proc.cpu_s(pids) > 0
    memory = proc.memory(pids[:1])
    assert memory.rss_kb == memory.largest_kb
    assert 0 < memory.pss_kb <= memory.rss_kb


def test_a_process_that_has_gone_counts_as_nothing():
    gone = 2**22 + 1  # above the largest id there can be
    assert proc.cpu_s([gone]) == 0
    assert proc.memory([gone]) == proc.Memory(0, 0, 0)
    assert proc.connections([gone], 1) == [0]


def test_a_connection_is_found_with_the_process_that_holds_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            with accepted:
                assert proc.connections([os.getpid()], port) == [1]
