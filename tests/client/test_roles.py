"""What a client's key allows: plain data only, unless it is an administrator's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actorraft import codec
from actorraft.roles import why_not

Ext = msgspec.msgpack.Ext
encode = msgspec.msgpack.encode


def commands(*calls: Any) -> codec.Commands:
    return codec.Commands(7, 0, 0, len(calls), codec.join_body([encode(call) for call in calls]))


def query(*calls: Any) -> codec.Query:
    return codec.Query(1, "linearizable", False, len(calls), codec.join_body([encode(call) for call in calls]))


PLAIN = [["set", "x", 1], ["set", "x", [1, {"a": [b"b", None, 1.5]}]], ["clear"]]
PICKLED = [
    Ext(1, b"call"), Ext(2, b"object"), Ext(3, b"definition"), Ext(4, b"flat"), Ext(99, b"?"),
    ["set", Ext(2, b"object")], ["set", [[{"a": Ext(2, b"deep")}]]], "text", 5, {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("call", PLAIN)
def test_calls_with_plain_data_are_for_everybody(call: Any) -> None:
    assert why_not("write", commands(call)) == ""
    assert why_not("read", query(call)) == ""
    assert why_not("write", query(call)) == ""


@pytest.mark.parametrize("call", PICKLED)
@pytest.mark.parametrize("role", ["read", "write"])
def test_a_program_is_for_administrators_alone(role: str, call: Any) -> None:
    assert "plain data only" in why_not(role, query(PLAIN[0], call))
    assert why_not("admin", query(PLAIN[0], call)) == ""
    if role == "write":
        assert "plain data only" in why_not(role, commands(call))


@pytest.mark.parametrize(
    ("role", "request_", "allowed"),
    [
        ("read", commands(PLAIN[0]), False),
        ("read", codec.Register(1), False),
        ("read", codec.Watch(1, "t", None), True),
        ("read", codec.Hello(), True),
        ("read", codec.Admin(1, "status", {}), True),
        ("read", codec.Admin(1, "snapshot", {}), False),
        ("write", codec.Admin(1, "admit_client", {}), False),
        ("write", codec.Admin(1, "change_membership", {}), False),
        ("write", codec.Admin(1, "join", {}), False),
        ("write", codec.Clock(), False),
        ("write", codec.Check(0, 0, b"", b""), False),
        ("join", codec.Admin(1, "join", {}), True),
        ("join", codec.Admin(1, "status", {}), False),
        ("join", codec.Hello(), True),
        ("join", query(PLAIN[0]), False),
        ("join", commands(PLAIN[0]), False),
        ("nonsense", codec.Hello(), False),
        ("admin", codec.Admin(1, "admit_client", {}), True),
    ],
)
def test_each_role_and_what_it_may_ask_for(role: str, request_: codec.Request, allowed: bool) -> None:
    assert (why_not(role, request_) == "") is allowed


def test_a_body_that_cannot_be_read_is_harmless() -> None:
    assert why_not("write", codec.Commands(7, 0, 0, 1, b"\xc1")) == ""
