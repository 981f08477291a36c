"""A node's status in Prometheus' words: names, types and units by its conventions.

Needs the extra `metrics` (prometheus-client); without it health answers, and this says what to install.

Source:     prometheus.io/docs/practices/naming; `promtool check metrics` accepts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

GAUGES: Final = (
    ("term", "current_term", "Term of Raft that this node is in."),
    ("commit_index", "commit_index", "Index of the last entry known to be committed."),
    ("last_applied", "applied_index", "Index of the last entry applied to the machine."),
    ("last_index", "last_index", "Index of the last entry of the log."),
    ("snapshot_index", "snapshot_index", "Index of the last entry inside the newest snapshot."),
    ("log_bytes", "log_bytes", "Bytes of log since the newest snapshot."),
    ("snapshot_bytes", "snapshot_bytes", "Bytes of the newest snapshot."),
    ("sessions", "sessions", "Sessions of clients that are open."),
    ("uptime_s", "uptime_seconds", "Seconds since this process began to serve."),
)
COUNTERS: Final = (
    ("writes", "log_writes", "Writes of the log, each with one sync where data is synced."),
    ("entries_written", "log_entries_written", "Entries written to the log."),
    ("appends_sent", "appends_sent", "Messages with entries that were sent to followers."),
    ("entries_sent", "entries_sent", "Entries sent to followers, over all of them."),
    ("leader_changes", "leader_changes", "Times that this node came to know another leader."),
)
HISTOGRAMS: Final = (
    ("sync", "sync_seconds", "Time of one write of the log with its sync."),
    ("commit", "commit_seconds", "Time at the leader from the write of entries until they are committed."),
    ("apply", "apply_seconds", "Time from handing committed entries over until they are applied."),
)


class MissingExtra(Exception):
    """prometheus-client is not installed; says how to install it."""


def expose(status: dict[str, Any]) -> bytes:
    """Return what /metrics answers.

    Raises:
        MissingExtra: prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ModuleNotFoundError as error:
        raise MissingExtra("metrics need prometheus-client: pip install 'actorraft[metrics]'") from error

    class Node:
        def collect(self) -> Iterator[Any]:
            yield from families(status)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Node())
    return generate_latest(registry)


def families(status: dict[str, Any]) -> Iterator[Any]:
    """Yield the families of metrics of one node's status."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    metrics = status["metrics"]
    info = GaugeMetricFamily("actorraft_build_info", "Versions, as labels.", labels=["version", "machine_version"])
    info.add_metric([str(status.get("version", "")), str(status.get("machine_version", 0))], 1)
    yield info
    yield GaugeMetricFamily("actorraft_leader", "1 at the leader, else 0.", value=float(status["state"] == "leader"))
    yield GaugeMetricFamily(
        "actorraft_has_leader", "1 where a leader is known, else 0.", value=float(status["leader_id"] is not None)
    )
    yield GaugeMetricFamily(
        "actorraft_ready", "1 where /readyz says so, else 0.", value=float(not status.get("not_ready"))
    )
    for name, said, text in GAUGES:
        if status.get(name) is not None:
            yield GaugeMetricFamily(f"actorraft_{said}", text, value=status[name])
    for name, said, text in COUNTERS:
        yield CounterMetricFamily(f"actorraft_{said}", text, value=metrics[name])
    for name, text in (("commands", "Frames of commands"), ("reads", "Frames of reads")):
        outcomes = CounterMetricFamily(f"actorraft_{name}", f"{text}, by what became of them.", labels=["outcome"])
        for outcome, count in sorted(metrics[name].items()):
            outcomes.add_metric([outcome], count)
        yield outcomes
    dropped = CounterMetricFamily("actorraft_dropped_frames", "What was dropped, by reason.", labels=["reason"])
    for reason, count in sorted(status["dropped"].items()):
        dropped.add_metric([reason], count)
    yield dropped
    match_index = GaugeMetricFamily(
        "actorraft_peer_match_index", "At the leader, the last entry that a peer is known to have.", labels=["peer"]
    )
    for peer, index in sorted(status.get("match_index", {}).items()):
        match_index.add_metric([str(peer)], index)
    yield match_index
    last_index = status["last_index"]
    lag = GaugeMetricFamily(
        "actorraft_peer_lag_entries",
        "At the leader, how many entries of its log a peer does not have.",
        labels=["peer"],
    )
    for peer, index in sorted(status.get("match_index", {}).items()):
        lag.add_metric([str(peer)], max(0, last_index - index))
    yield lag
    links = GaugeMetricFamily("actorraft_peer_link_up", "1 where the link to a peer is up, else 0.", labels=["peer"])
    for peer, down_s in sorted(status.get("links", {}).items()):
        links.add_metric([str(peer)], float(down_s is None))
    yield links
    yield from _disk_families(status.get("disk") or {})
    yield from _backup_families(status.get("backup") or {})
    for name, said, text in HISTOGRAMS:
        bounds, counts, above, total_s = metrics[name]
        so_far, buckets = 0, []
        for bound, count in zip(bounds, counts, strict=True):
            so_far += count
            buckets.append((str(bound), so_far))
        buckets.append(("+Inf", so_far + above))
        yield HistogramMetricFamily(f"actorraft_{said}", text, buckets=buckets, sum_value=total_s)


def _disk_families(disk: dict[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    if not disk:
        return
    yield GaugeMetricFamily(
        "actorraft_disk_free_bytes", "Room on the disk of this node's data.", value=disk["free_bytes"]
    )
    yield GaugeMetricFamily(
        "actorraft_disk_reserve_bytes", "With less room than this, writes are refused.", value=disk["reserve_bytes"]
    )
    if disk["full_in_s"] is not None:
        yield GaugeMetricFamily(
            "actorraft_disk_full_in_seconds",
            "Until writes are refused, at the pace of the last minute; absent where the disk does not fill.",
            value=disk["full_in_s"],
        )
    yield GaugeMetricFamily(
        "actorraft_disk_refuses_writes", "1 while writes are refused, else 0.", value=float(disk["refuses_writes"])
    )


def _backup_families(backup: dict[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    if not backup:
        return
    if backup["time_s"] is not None:
        yield GaugeMetricFamily(
            "actorraft_backup_last_success_timestamp_seconds", "When the last backup was good.", value=backup["time_s"]
        )
        yield GaugeMetricFamily("actorraft_backup_size_bytes", "Bytes of the last backup.", value=backup["bytes"])
    yield GaugeMetricFamily(
        "actorraft_backup_failed",
        "1 where the last try to write a backup failed, else 0.",
        value=float(bool(backup["error"])),
    )
