"""A SLURM cluster of two nodes on this machine, without accounting, for tests of commands that run on one.

It needs SLURM and MUNGE (Debian: ``slurm-wlm`` and ``munge``), but neither systemd nor a configuration.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
NODES = ("one", "two")
#: time that a daemon has to start or to end, in seconds.
DAEMON_SECONDS = 20.0

#: KillWait is the time between SIGTERM and SIGKILL; config_overrides allows more processors than the machine has.
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
KillWait=5
ReturnToService=2
MailProg=/bin/true
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=2
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """A running cluster, to which ``sbatch``, ``srun`` and the other programs connect; its folder."""
    missing = [program for program in PROGRAMS if _path(program) is None]
    if missing:
        pytest.skip(f"a SLURM cluster needs {', '.join(missing)} (Debian: slurm-wlm and munge)")
    # not in pytest's folder, since the path of a socket has at most 107 characters
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("SLURM_CONF", f"{folder}/slurm.conf")
        stack.callback(_kill_all, folder)
        try:
            _start(folder, stack)
        except OSError as error:  # TimeoutError is one
            pytest.skip(f"no SLURM cluster can be started here: {error}")
        yield folder


def ask(*line: str) -> str:
    """What one of SLURM's programs prints."""
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def jobs(*states: str) -> list[str]:
    """The ids of the jobs in the queue that are in one of these states, such as ``RUNNING``; of all by default."""
    lines = [line.split() for line in ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()]
    return [id for id, state in lines if not states or state in states]


def _start(folder: Path, stack: ExitStack) -> None:
    controller, *ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().partition(".")[0]
    config = CONFIG.format(
        folder=folder,
        host=host,
        user=getpass.getuser(),
        controller=controller,
        nodes=",".join(NODES),
        ports=",".join(map(str, ports)),
    )
    (folder / "slurm.conf").write_text(config, encoding="utf-8")
    for name in ("state", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "pid-file", "log-file")]
    files += [f"--seed-file={folder}/munge.seed", f"--socket={folder}/munge.socket"]
    _daemon(folder, stack, "munged", "--foreground", "--force", *files)
    wait_until((folder / "munge.socket").exists, DAEMON_SECONDS, "the start of munged")
    _daemon(folder, stack, "slurmctld", "-D")
    for node in NODES:
        _daemon(folder, stack, "slurmd", "-D", "-N", node)
    wait_until(_idle, DAEMON_SECONDS, f"the start of SLURM ({folder.name})")
    stack.callback(_cancel_all)


def _daemon(folder: Path, stack: ExitStack, program: str, *args: str) -> None:
    """Starts a daemon, which is stopped when the stack is closed."""
    with (folder / f"{program}.log").open("ab") as log:
        process = subprocess.Popen(
            [_path(program) or program, *args], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
        )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(timeout=DAEMON_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)


def _idle() -> bool:
    """Whether all nodes wait for jobs."""
    with suppress(subprocess.SubprocessError):
        return ask("sinfo", "--noheader", "--Node", "--format=%t").split() == ["idle"] * len(NODES)
    return False


def _cancel_all() -> None:
    with suppress(subprocess.SubprocessError, TimeoutError):
        for job in jobs():
            ask("scancel", job)
        wait_until(lambda: not jobs(), DAEMON_SECONDS)


def _kill_all(folder: Path) -> None:
    """Kills what is left of the cluster's processes: those with its configuration in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                process.name != str(os.getpid())
                and f"SLURM_CONF={folder}".encode() in (process / "environ").read_bytes()
            ):
                os.kill(int(process.name), signal.SIGKILL)


def _path(program: str) -> str | None:
    """The path of a program; daemons are in folders that are not on every user's path."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
