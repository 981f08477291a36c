"""What decides replicated state is the cluster's: set by the first start, and no later one may say otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorraft import RaftConfig, ReplicatedStateMachine, StartError
from statemachines.kv import KVStore

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("changed", [{"session_expiry_s": 60.0}, {"frame_bytes_max": 1 << 20}])
def test_a_later_spawn_that_says_otherwise_is_refused_naming_both(changed: dict[str, float], tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ReplicatedStateMachine(KVStore).spawn(1, data_dir=data) as cluster:
        cluster.proxy().set("x", 1)
    (name, value) = next(iter(changed.items()))
    with pytest.raises(StartError, match=rf"says {name} = {value}.*and the cluster's is {getattr(RaftConfig(), name)}"):
        ReplicatedStateMachine(KVStore).spawn(data_dir=data, config=RaftConfig(**changed))  # type: ignore[arg-type]
    with ReplicatedStateMachine(KVStore).spawn(data_dir=data, config=RaftConfig(heartbeat_ticks=5)) as cluster:
        assert cluster.proxy().get("x") == 1
