"""The process behind a lease: puts it into force, waits, takes it away.

``python -m ztprobe.agent.lease_keeper ID`` is two processes that watch each other. The *worker* imposes
the lease, reports on standard output in one JSON line, and lifts it on SIGTERM
(`ztprobe profile clear`), at its expiry, or when its pods are gone and none can come; between, it
follows the profile's schedule if there is one, and the lease's selector
(`ztprobe.agent.lease_follower`). The *warden*, the worker's parent, lifts it if the worker ends in
any other way; the worker lifts it if the warden does. Killed both at once, the next ztprobe command
finds the lease without an owner (`sweep`); each has a session of its own, so that what kills a
session or a process group hits one of them. A delay line ends with its worker, and packets pass
undelayed from then on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

from ztprobe.agent.coming_pods import pods_coming
from ztprobe.agent.lease_conflicts import refuse_taken
from ztprobe.agent.lease_follower import LeaseFollower, first_pods
from ztprobe.emulation.apply import put_into_force, revert
from ztprobe.emulation.delay_line.node import NodeQueue
from ztprobe.emulation.profile_change import change
from ztprobe.emulation.schedule_follower import Change, ScheduleRunner
from ztprobe.errors import ZtprobeError
from ztprobe.kernelnet.drift import PodDevice
from ztprobe.leases import notices, records
from ztprobe.leases.records import Lease, StepInForce
from ztprobe.paths import REPO_DIR
from ztprobe.pods.model import still_there
from ztprobe.process.identity import ProcessIdentity
from ztprobe.profile.model import Profile

__all__ = ("end", "keep", "sweep")

_LOOK_S = 0.5  # at pods and delay lines
_FOLLOW_S = 0.02  # at pods that may come
_ANSWER_S = 30.0
_END_S = 10.0


def keep(lease: Lease) -> None:
    """Write a lease down, start its keeper, and return once it is in force.

    :raises ZtprobeError: it could not be put into force; nothing of it is left.
    """
    lease.write()
    _refuse_taken_meanwhile(lease)
    command = [sys.executable, "-m", "ztprobe.agent.lease_keeper", lease.id]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C and a closed terminal are not for it
        cwd=REPO_DIR,
        env=_environment(),
        text=True,
    )
    stdout = process.stdout
    assert stdout is not None
    try:
        ready = select.select([stdout], [], [], _ANSWER_S)[0]
        answer = json.loads(stdout.readline() or "{}") if ready else {}
    except BaseException:
        _give_up(process, lease)
        raise
    finally:
        stdout.close()
    if not answer.get("in_force"):
        _give_up(process, lease)
        error = ZtprobeError(answer.get("error", "the lease keeper ended without an answer"))
        error.exit_code = int(answer.get("exit_code", ZtprobeError.exit_code))
        raise error
    # The keeper is meant to outlive us; nobody will wait for it here.
    process.returncode = 0


def _refuse_taken_meanwhile(lease: Lease) -> None:
    """:raises EnforcementError: since it was planned, another lease has taken one of its pods."""
    try:
        with records.being_changed():
            others = [one for one in records.all_leases() if one.id != lease.id]
            refuse_taken(lease.pods, lease.directions, others)
    except BaseException:
        lease.remove()
        raise


def _environment() -> dict[str, str]:
    """Of the keeper, which is at another place: what names a cluster names it from there, too."""
    environment = dict(os.environ)
    if named := environment.get("KUBECONFIG"):
        whole = [os.path.abspath(os.path.expanduser(path)) for path in named.split(os.pathsep) if path]
        environment["KUBECONFIG"] = os.pathsep.join(whole)
    return environment


def _give_up(process: subprocess.Popen[str], lease: Lease) -> None:
    # Without its warden the worker lifts what it has imposed; `end` waits for that.
    process.kill()
    process.wait()
    end(lease)


def end(lease: Lease) -> list[str]:
    """End a lease now, through its keeper or without it; says what was removed."""
    lease = _as_written(lease)  # its owner may have changed
    owner = lease.owner
    if owner.pid != os.getpid() and owner.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        while owner.alive and time.monotonic() < deadline:
            time.sleep(0.005)
        if owner.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner.pid, signal.SIGKILL)
    if owner.pid != os.getpid() and not lease.directory.exists():
        return []  # its keeper has lifted it; what is there by now may be another's
    return _lift(_as_written(lease))


def _as_written(lease: Lease) -> Lease:
    """The lease with the pods that have come to it since."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return records.load(lease.id)
    return lease


def _lift(lease: Lease) -> list[str]:
    report = revert(lease)
    notices.tell_ended(lease)
    lease.remove()
    return report


def sweep() -> list[str]:
    """End every lease that nobody keeps any more; says what was removed, one line each."""
    report = []
    for lease in records.all_leases():
        if (reason := lease.abandoned) is not None:
            removed = end(lease)
            what = "; ".join(removed) or "nothing of it was left"
            report.append(f"lease {lease.id} of {lease.profile.name} ({reason}): {what}")
    return report


def _worker(lease: Lease, warden: int) -> int:
    os.setsid()  # not the warden's
    awake, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    lease.owner = ProcessIdentity.own()
    lease.write()
    queues: list[NodeQueue] = []
    follower: LeaseFollower | None = None
    from_ns = time.monotonic_ns()
    try:
        try:
            queues = put_into_force(lease)
        except ZtprobeError as error:
            _answer(error=str(error), exit_code=error.exit_code)
            return 0
        except FileNotFoundError as error:
            _answer(error=f"the pods are ending: {error.filename or error} is gone", exit_code=5)
            return 0
        except Exception as error:
            what = f"{lease.profile.name} could not be put into force: {type(error).__name__}: {error}"
            _answer(error=what, exit_code=1)
            return 0
        lease.state = "in force"
        lease.write()
        notices.tell_applied(lease, from_ns)
        stepping = _begin_schedule(lease, queues)
        follower = _begin_following(lease)
        _answer(in_force=True)
        _wait(lease, queues, stepping, follower, [awake.fileno(), warden])
    finally:
        if follower is not None:
            follower.close()
        for queue in queues:
            queue.stop()
        _lift(lease)
    return 0


def _begin_following(lease: Lease) -> LeaseFollower | None:
    coming = pods_coming(lease)
    if lease.follow is None or coming is None:
        lease.write_following(first_pods(lease))
        return None
    follower = LeaseFollower(lease, lease.follow, coming)
    follower.look()  # since when the first pods are under it is there to be read
    return follower


def _wait(
    lease: Lease,
    queues: list[NodeQueue],
    stepping: ScheduleRunner | None,
    follower: LeaseFollower | None,
    watched: list[int],
) -> None:
    while (left_s := lease.remaining_s) > 0:
        wait_s = min(left_s, _LOOK_S if follower is None else _FOLLOW_S)
        next_ns = stepping.next_ns if stepping is not None else None
        if next_ns is not None:
            wait_s = max(0.0, min(wait_s, (next_ns - time.monotonic_ns()) / 1e9))
        if select.select(watched, [], [], wait_s)[0]:
            return
        if stepping is not None and (changed := stepping.catch_up()) is not None:
            _note(lease, stepping, changed)
            if changed.at_ns is not None:
                notices.tell_changed(lease, lease.profile.steps[changed.step], changed.at_ns)
        if follower is not None:
            follower.look()
            if follower.is_over:
                return
        elif not any(still_there(pod.netns, pod.netns_inode) for pod in lease.pods):
            return
        if lease.state == "in force" and any(queue.pid is None for queue in queues):
            lease.state = "undelayed"
            lease.write()
            notices.tell_ended(lease)


def _begin_schedule(lease: Lease, queues: list[NodeQueue]) -> ScheduleRunner | None:
    if lease.profile.schedule is None:
        return None

    def change_all(step: Profile) -> tuple[int, int]:
        # Pods that are gone have taken theirs along.
        devices = [
            PodDevice(pod=point.pod, netns=point.netns, name=point.device)
            for point in lease.points
            if still_there(point.netns, point.netns_inode)
        ]
        return change(step, lease.backend, devices, queues)

    stepping = ScheduleRunner(lease.profile, change_all)
    _note(lease, stepping, stepping.first())
    return stepping


def _note(lease: Lease, stepping: ScheduleRunner, changed: Change) -> None:
    before = lease.step_in_force()
    boot_ns = records.now_ns() - time.monotonic_ns()
    until_ns = stepping.next_ns
    problem = changed.problem
    lease.write_step(
        StepInForce(
            number=changed.number,
            step=changed.step,
            since_ns=(changed.at_ns or changed.from_ns) + boot_ns,
            until_ns=None if until_ns is None else until_ns + boot_ns,
            failed=changed.error is not None,
            problems=(before.problems if before is not None else 0) + (problem is not None),
            last_problem=problem or (before.last_problem if before is not None else None),
        )
    )


def _answer(**values: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(values), flush=True)
    _let_go_of_output()


def main() -> int:
    """Run both processes; returns when the lease has ended."""
    (lease_id,) = sys.argv[1:]
    lease = records.load(lease_id)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    warden = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = _worker(lease, warden)
        finally:
            os._exit(status)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    _let_go_of_output()
    _, status = os.waitpid(child, 0)
    if status != 0:
        _lift(_as_written(lease))
    return 0


def _let_go_of_output() -> None:
    # Whoever reads until the end of file must not wait for us.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


if __name__ == "__main__":
    sys.exit(main())
