"""The Raft core: a pure machine with events in and effects out; see server.py for the way through it."""

from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import Compacted, NotLeader, ProposalRefused, RaftError
from actorraft.raft.log import RaftLog, append_entries
from actorraft.raft.membership import AddLearner, AddVoter, MemberChange, RemoveNode
from actorraft.raft.messages import (
    MESSAGE_TYPES,
    NO_ENTRY,
    AppendEntries,
    AppendEntriesResponse,
    ClientKey,
    Configuration,
    EntryId,
    HardState,
    InstallSnapshot,
    InstallSnapshotResponse,
    LogEntry,
    Member,
    Message,
    ReadIndex,
    ReadIndexResponse,
    Reminder,
    RequestVote,
    RequestVoteResponse,
    Standing,
    TimeoutNow,
    Token,
)
from actorraft.raft.probation import Probation
from actorraft.raft.progress import Progress, ProgressState
from actorraft.raft.quorum import VoteResult, committed_index, vote_result
from actorraft.raft.ready import CandidateState, FollowerState, LeaderState, LostLog, ReadState, Ready, ServerState
from actorraft.raft.server import RaftServer

__all__ = [
    "MESSAGE_TYPES",
    "NO_ENTRY",
    "AddLearner",
    "AddVoter",
    "AppendEntries",
    "AppendEntriesResponse",
    "CandidateState",
    "ClientKey",
    "Compacted",
    "Configuration",
    "EntryId",
    "FollowerState",
    "HardState",
    "InstallSnapshot",
    "InstallSnapshotResponse",
    "LeaderState",
    "LogEntry",
    "LostLog",
    "Member",
    "MemberChange",
    "Message",
    "NotLeader",
    "Probation",
    "Progress",
    "ProgressState",
    "ProposalRefused",
    "RaftConfig",
    "RaftError",
    "RaftLog",
    "RaftServer",
    "ReadIndex",
    "ReadIndexResponse",
    "ReadState",
    "Ready",
    "Reminder",
    "RemoveNode",
    "RequestVote",
    "RequestVoteResponse",
    "ServerState",
    "Standing",
    "TimeoutNow",
    "Token",
    "VoteResult",
    "append_entries",
    "committed_index",
    "vote_result",
]
