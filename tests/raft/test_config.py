"""RaftConfig refuses what cannot work, by name."""

from __future__ import annotations

from typing import Any

import pytest

from actorraft.raft.config import LINK_MS_MAX, MESSAGE_BYTES_MAX, RaftConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("link_heartbeat_ms", 0),
        ("link_heartbeat_ms", LINK_MS_MAX + 1),
        ("link_timeout_ms", LINK_MS_MAX + 1),
        ("link_timeout_ms", 200),  # not above the heartbeat
        ("reconnect_max_ms", 1),
        ("append_bytes_max", MESSAGE_BYTES_MAX + 1),
        ("frame_bytes_max", MESSAGE_BYTES_MAX + 1),
        ("snapshot_chunk_bytes", MESSAGE_BYTES_MAX + 1),
    ],
)
def test_what_a_link_cannot_be_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        RaftConfig(**{field: value})


def test_every_profile_has_links_that_outlive_their_heartbeat() -> None:
    for config in (RaftConfig.local(), RaftConfig.lan(), RaftConfig.wan()):
        assert config.link_timeout_ms >= 3 * config.link_heartbeat_ms
