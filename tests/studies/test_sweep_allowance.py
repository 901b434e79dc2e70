"""Cores and memory under control groups of both versions and under SLURM, as the kernel and SLURM write them."""

import os

import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies import allowance
from mup_lightning.studies.sweep import pool

GIB = 1 << 30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Lays out control groups; the machine has 64 cores and 256 GiB free."""
    monkeypatch.setattr(allowance, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(allowance, "_GROUPS", tmp_path / "own")
    monkeypatch.setattr(allowance, "_free_on_machine", lambda: 256 * GIB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)

    def lay_out(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(f"{text}\n")

    return lay_out


@pytest.mark.parametrize(
    ("given", "threads"), [(None, 32), ("", 32), ("3", 3), ("4,2", 4), ("x", None), ("0", None), ("-1", None)]
)
def test_threads_of_a_worker_are_its_share_unless_openmp_is_told(groups, monkeypatch, given, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    if threads:
        assert pool.threads(2) == threads
    else:
        with pytest.raises(UserError, match=r"OMP_NUM_THREADS is .*expected a whole number of at least 1"):
            pool.threads(2)


def test_without_groups_the_machine_is_ours(groups):
    assert (allowance.cores(), allowance.free_memory()) == (64, 256 * GIB)
    groups("0::/user.slice/a\n", {"user.slice/a/cpu.max": "max 100000", "user.slice/a/memory.max": "max"})
    assert (allowance.cores(), allowance.free_memory()) == (64, 256 * GIB)


def test_the_tightest_of_the_groups_above_counts(groups):
    groups("0::/job/step\n", {
        "job/step/cpu.max": "800000 100000", "job/cpu.max": "350000 100000",
        "job/step/memory.max": "max", "job/step/memory.current": 3 * GIB,
        "job/memory.max": 8 * GIB, "job/memory.current": 5 * GIB, "job/memory.stat": f"anon 7\ninactive_file {GIB}",
    })  # fmt: skip
    assert (allowance.cores(), allowance.free_memory()) == (3, 4 * GIB)


def test_version_1_and_a_container_that_sees_its_own_group_alone(groups):
    groups("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n", {
        "cpu/cpu.cfs_quota_us": 150000, "cpu/cpu.cfs_period_us": 100000,
        "memory/memory.limit_in_bytes": 2 * GIB, "memory/memory.usage_in_bytes": GIB,
        "memory/docker/x/memory.limit_in_bytes": (1 << 63) - 4096, "memory/docker/x/memory.usage_in_bytes": GIB,
    })  # fmt: skip
    assert (allowance.cores(), allowance.free_memory()) == (1, GIB)
    groups("5:cpu,cpuacct:/\n4:memory:/\n", {"cpu/cpu.cfs_quota_us": -1, "memory/memory.limit_in_bytes": 1 << 63})
    assert (allowance.cores(), allowance.free_memory()) == (64, 256 * GIB)


def test_what_slurm_granted(groups, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4096")
    assert allowance.free_memory() == 4 * GIB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # the whole node
    assert allowance.free_memory() == 256 * GIB
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1024")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert allowance.free_memory() == 6 * GIB
