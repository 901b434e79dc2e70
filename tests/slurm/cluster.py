"""A SLURM cluster of two nodes on this machine, for tests and for trying things out; no systemd, no cgroups.

    python -m tests.slurm.cluster up [FOLDER]      # then: export SLURM_CONF=FOLDER/slurm.conf
    python -m tests.slurm.cluster status [FOLDER]
    python -m tests.slurm.cluster down [FOLDER]

The nodes are two slurmd named by their loopback addresses 127.0.0.2 and 127.0.0.3, so that no name has to be resolved.
Each claims 4 cores and 2 GPUs. Jobs in the partition `urgent` preempt those in `low`. Needs root and Debian's packages
(PACKAGES).
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

PACKAGES = "slurmctld slurmd slurm-client munge"
NODES = ("127.0.0.2", "127.0.0.3")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credentials have expired: two minutes by default.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
MinJobAge=3600
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName={nodes[0]} NodeAddr={nodes[0]} NodeHostname={host} Port={ports[1]}
NodeName={nodes[1]} NodeAddr={nodes[1]} NodeHostname={host} Port={ports[2]}
PartitionName=low Nodes=ALL Default=YES DefaultTime=60 MaxTime=1-0 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=10
"""


def obstacle() -> str | None:
    """Why no cluster can be started here, and what to do; None: it can."""
    if missing := [program for program in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(program) is None]:
        return f"no {', '.join(missing)} here: apt-get install -y --no-install-recommends {PACKAGES}"
    return None if os.geteuid() == 0 else "slurmd has to be started as root"


class Cluster:
    """A cluster in a scratch folder.

    Args:
        folder: for its configuration, logs and state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        self.environment |= {"SLURM_CONF": str(self.conf)}

    def up(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        for part in ("state", *(f"spool/{node}" for node in NODES)):
            (self.folder / part).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host, ports = socket.gethostname().partition(".")[0], free_ports(3)
        self.conf.write_text(CONF.format(folder=self.folder, host=host, ports=ports, nodes=NODES))
        # The GPUs are devices that always exist; nothing opens them.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # 22.05 reads it, though nothing uses it
        places = {"key-file": key, "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
        places |= {"seed-file": "munge.seed"}
        # --force: above the folder there may be one, such as pytest's, that only root may enter.
        self.run("munged", "--force", *(f"--{option}={self.folder / name}" for option, name in places.items()))
        self.run("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self.run("slurmd", "-N", node)

    def wait_until_idle(self) -> None:
        """Wait until both nodes are there, and nothing runs."""
        self.wait("both nodes are idle", lambda: self.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D") == "2")

    def down(self) -> None:
        """End all jobs, then the daemons, then whatever they leave."""
        self.run("scancel", "--signal=KILL", "--user=root", check=False)
        deadline = time.monotonic() + 5
        while self.run("squeue", "-h", check=False) and time.monotonic() < deadline:
            time.sleep(0.1)
        for file in (*self.folder.glob("slurmd.*.pid"), self.folder / "slurmctld.pid", self.folder / "munged.pid"):
            if file.exists():
                end(int(file.read_text()), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while list(self.folder.glob("*.pid")) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in self.processes():
            end(process.pid, signal.SIGKILL)

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints, run against this cluster."""
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=240, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}\n{self.logs()}")
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """A field that `scontrol show job` prints, such as JobState."""
        text = self.run("scontrol", "show", "job", job)
        return next(word.partition("=")[2] for word in text.split() if word.startswith(f"{name}="))

    def wait(self, what: str, condition, seconds: float = 240, explain=lambda: "") -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not so after {seconds} s\n{explain()}\n{self.logs()}")
            time.sleep(0.1)

    def processes(self, **variables: str) -> list[psutil.Process]:
        """All processes of this cluster, or those with certain environment variables."""
        wanted = {"SLURM_CONF": str(self.conf), **variables}.items()
        running = psutil.process_iter(["environ", "ppid", "cmdline"])
        found = [process for process in running if wanted <= (process.info["environ"] or {}).items()]
        return [process for process in found if process.pid != os.getpid()]

    def node_processes(self, node: str) -> list[int]:
        """The ids of a node's daemon, its slurmstepd processes, and its tasks."""
        tasks = {process.pid: process.info["ppid"] for process in self.processes(SLURMD_NODENAME=node)}
        steps = set(tasks.values()) - tasks.keys() - {1}
        return [int((self.folder / f"slurmd.{node}.pid").read_text()), *steps, *tasks]

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in sorted(self.folder.glob("*.log")))


def end(process: int, number: signal.Signals) -> None:
    """Send a signal to a process, which may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def free_ports(count: int) -> list[int]:
    """Ports that are free on all loopback addresses."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def main(argv: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/tmp/mup-slurm"))
    arguments = parser.parse_args(argv)
    cluster = Cluster(arguments.folder.absolute())
    if arguments.action == "up":
        if reason := obstacle():
            print(f"error: {reason}", file=sys.stderr)
            return 1
        try:
            cluster.up()
        except BaseException:
            cluster.down()
            raise
        print(f"export SLURM_CONF={cluster.conf}")
    elif arguments.action == "status":
        print(cluster.run("sinfo", "-N", "-l"), cluster.run("squeue"), sep="\n\n")
    else:
        cluster.down()
        shutil.rmtree(cluster.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
