import dataclasses
import os
from pathlib import Path

import pytest

from ztprobe.experiment.names import Experiment
from ztprobe.experiment.requirements import delay_backend, machine_problems, out_problems, rate_backend
from ztprobe.preflight import KernelFeatures, Machine, NetworkTrials, Tools, choose_hooks, collect
from ztprobe.preflight.features import BINARIES, MODULES, RAW_TRACEPOINTS, cgroup_layout
from ztprobe.preflight.signals import SIGNALS, hooks_in_use

EVERYTHING_TRIED = NetworkTrials(**{field.name: True for field in dataclasses.fields(NetworkTrials)})
KERNEL = KernelFeatures(
    release="6.12",
    root=True,
    btf=True,
    bpf=True,
    raw_tracepoints=frozenset(RAW_TRACEPOINTS),
    kprobes=True,
    drop_reasons=True,
    network=EVERYTHING_TRIED,
    bridge_netfilter=True,
    congestion_controls=frozenset({"cubic"}),
    cgroup_layout="v2",
)
TOOLS = Tools(binaries=dict.fromkeys(BINARIES, "1.0"), modules=dict.fromkeys(MODULES, "1.0"))
MACHINE = Machine(kernel=KERNEL, tools=TOOLS)
NET0_SEC0 = Experiment(profile="net0", level=0)
NET2_SEC3 = Experiment(profile="net2", level=3)


def kernel(**changes: object) -> KernelFeatures:
    network = {key: changes.pop(key) for key in list(changes) if key in NetworkTrials.__dataclass_fields__}
    return dataclasses.replace(KERNEL, network=dataclasses.replace(EVERYTHING_TRIED, **network), **changes)


def problems(experiment: Experiment = NET2_SEC3, *, without: str = "", **changes: object) -> list[str]:
    tools = Tools(
        binaries={name: None if name == without else "1.0" for name in BINARIES},
        modules={name: None if name == without else "1.0" for name in MODULES},
    )
    return machine_problems(Machine(kernel=kernel(**changes), tools=tools), [experiment])


def hooks(features: KernelFeatures) -> dict[str, str | None]:
    return {verdict.signal: verdict.hook for verdict in choose_hooks(features)}


def test_a_modern_kernel_offers_the_stable_hook_of_every_signal() -> None:
    assert hooks(KERNEL) == {
        "tcp_life_cycle": "tp_btf inet_sock_set_state",
        "tls_phases": "tcx on eth0",
        "transfer_edges": "tcx on eth0 and lo",
        "app_reads": "tp_btf sock_recv_length",
        "app_writes": "tp_btf sock_send_length",
        "retransmissions": "tcx on eth0 + tp_btf tcp_retransmit_skb",
        "drops": "tp_btf kfree_skb (reasons from BTF)",
        "dns": "tcx on eth0",
        "run_queue": "tp_btf sched_switch",
    }


def test_before_6_6_packets_are_seen_by_clsact() -> None:
    older = hooks(kernel(tcx=False))
    assert older["transfer_edges"] == "tc clsact on eth0 and lo"
    assert older["retransmissions"] == "tc clsact on eth0 + tp_btf tcp_retransmit_skb"
    assert older["run_queue"] == hooks(KERNEL)["run_queue"]


@pytest.mark.parametrize("tcx", [True, False])
@pytest.mark.parametrize("kprobes", [True, False])
def test_a_run_names_what_the_doctor_names(tcx: bool, kprobes: bool) -> None:
    tracepoints = KERNEL.raw_tracepoints - ({"sock_recv_length", "sock_send_length"} if kprobes else set())
    said = hooks_in_use(kprobes=kprobes, packets="tcx" if tcx else "tc clsact")
    assert said == hooks(kernel(tcx=tcx, raw_tracepoints=tracepoints))


def test_before_6_3_the_application_is_seen_by_kprobes() -> None:
    older = KERNEL.raw_tracepoints - {"sock_recv_length", "sock_send_length"}
    with_kprobes = hooks(kernel(raw_tracepoints=older))
    assert with_kprobes["app_reads"] == "kprobe and kretprobe tcp_recvmsg"
    assert with_kprobes["app_writes"] == "kprobe and kretprobe tcp_sendmsg"
    without = {v.signal: v for v in choose_hooks(kernel(raw_tracepoints=older, kprobes=False))}
    assert without["app_reads"].hook is None
    assert "6.3" in without["app_reads"].remedy
    assert without["dns"].hook is not None


def test_a_drop_without_a_reason_is_no_drop_signal() -> None:
    assert hooks(kernel(drop_reasons=False))["drops"] is None


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
def test_every_signal_can_be_missing_and_says_what_would_help(signal) -> None:
    (verdict,) = choose_hooks(kernel(tc_bpf=False, tcx=False, bpf=False, kprobes=False), [signal])
    assert verdict.hook is None
    assert verdict.remedy


def test_a_whole_machine_has_no_problem() -> None:
    assert machine_problems(MACHINE, [NET0_SEC0, NET2_SEC3]) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"root": False}, "not root"),
        ({"btf": False}, "no BTF"),
        ({"bpf": False}, "bpf(2)"),
        ({"veth": False}, "CONFIG_VETH"),
        ({"bridge": False}, "CONFIG_BRIDGE"),
        ({"nft": False}, "nftables"),
        ({"netem": False, "nfqueue": False}, "CONFIG_NET_SCH_NETEM"),
        ({"netem": False, "htb": False, "tbf": False}, "CONFIG_NET_SCH_HTB"),
        ({"tc_bpf": False, "tcx": False}, "CONFIG_NET_CLS_BPF"),
        ({"without": "bcc"}, "python3-bpfcc"),
        ({"without": "torch"}, "module torch"),
        ({"without": "haproxy"}, "package haproxy"),
        ({"without": "dnsmasq"}, "package dnsmasq-base"),
        ({"without": "nft"}, "package nftables"),
    ],
)
def test_whatever_is_missing_is_named_with_its_remedy(changes: dict[str, object], expected: str) -> None:
    found = problems(**changes)
    assert found
    assert all(expected in line for line in found)
    assert all("\n" not in line for line in found)


def test_what_an_experiment_does_not_use_may_be_missing() -> None:
    assert problems(NET0_SEC0, without="haproxy") == []
    assert problems(NET0_SEC0, without="nft", nft=False) == []
    assert problems(NET0_SEC0, netem=False, nfqueue=False, htb=False, tbf=False) == []
    assert problems(Experiment(profile="net0", level=1), without="haproxy") == []
    assert problems(NET2_SEC3, without="torchvision") == []


def test_netem_is_the_first_choice_and_the_delay_line_needs_the_bridge_hook() -> None:
    def backend(**changes: object) -> str | None:
        return delay_backend(Machine(kernel=kernel(**changes), tools=TOOLS))

    assert backend() == "netem"
    assert backend(netem=False) == "nfqueue"
    assert backend(netem=False, bridge_netfilter=False) is None
    assert delay_backend(Machine(kernel=KernelFeatures(), tools=TOOLS)) == "unknown"
    assert rate_backend(kernel(netem=False)) == "tbf"
    assert rate_backend(kernel(tbf=False)) == "netem"


@pytest.mark.parametrize(
    ("mounts", "layout"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "v2"),
        ("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", "v1"),
        ("cgroup /c/cpu cgroup rw 0 0\ncgroup2 /c/unified cgroup2 rw 0 0\n", "hybrid"),
        ("proc /proc proc rw 0 0\n", "none"),
    ],
)
def test_cgroup_layout(mounts: str, layout: str) -> None:
    assert cgroup_layout(mounts) == layout


def test_the_output_directory_is_judged_without_making_anything(tmp_path: Path) -> None:
    assert out_problems(tmp_path / "new" / "run") == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    assert out_problems(tmp_path / "empty") == []
    (tmp_path / "file").touch()
    assert "is a file" in out_problems(tmp_path / "file")[0]
    assert "is a file" in out_problems(tmp_path / "file" / "run")[0]
    assert "not empty" in out_problems(tmp_path)[0]


def test_an_unwritable_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    (found,) = out_problems(tmp_path / "new" / "run")
    assert "not writable" in found
    assert str(tmp_path) in found


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert "File name too long" in out_problems(tmp_path / ("x" * 300))[0]


def test_collecting_works_for_anybody() -> None:
    machine = collect()
    assert machine.kernel.release == os.uname().release
    assert machine.kernel.root == (os.geteuid() == 0)
    assert machine.tools.modules["pyroute2"]
