"""Bugs of upgrades that roll, to be planted as those of bugs.py are."""

from __future__ import annotations

from typing import Any, BinaryIO

import pytest

from actorraft import codec
from actorraft.node.executor import Executor
from actorraft.node.host import MachineHeld
from actorraft.node.rules import Rules
from actorraft.node.work import Restore, Restored, Stopped
from actorraft.simulation.versions import VersionedHost
from tests.simulation.bugs import Way, bug

_use_code, _apply_code, _restore = Executor._use_code, Executor._apply_code, Executor._restore


@bug("a higher version takes effect on each node when that has it", quick=True, way=Way.VERSIONS)
def _(patch: pytest.MonkeyPatch) -> None:
    def eager(self: Executor, code: codec.Code | None) -> None:
        _use_code(self, code)
        if self._mine is not None:
            self._context.machine_version = self._mine.version

    patch.setattr(Executor, "_use_code", eager)


@bug(
    "a restored node has forgotten by which version its state is, and migrates once more", quick=True, way=Way.VERSIONS
)
def _(patch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Executor, work: Restore) -> Restored | Stopped:
        done = _restore(self, work)
        if self.code is not None:
            self.code = codec.Code(0, self.code.fingerprint)
        return done

    patch.setattr(Executor, "_restore", forgetful)


@bug("newer code writes snapshots in its own format before that is in effect", quick=True, way=Way.VERSIONS)
def _(patch: pytest.MonkeyPatch) -> None:
    def newest(self: Executor, code: codec.Code | None) -> None:
        _use_code(self, code)
        if self._mine is not None:
            self.host.use_rules(self._mine.version)

    patch.setattr(Executor, "_use_code", newest)


@bug("a fingerprint is ignored", quick=True, way=Way.VERSIONS)
def _(patch: pytest.MonkeyPatch) -> None:
    def trusting(self: Executor, code: codec.Code | None) -> None:
        _use_code(self, code)
        self._refuses = False

    patch.setattr(Executor, "_use_code", trusting)
    patch.setattr(Rules, "refusal", lambda *_: "")


@bug("a restore forgets a field that a newer version has", quick=True, way=Way.VERSIONS)
def _(patch: pytest.MonkeyPatch) -> None:
    restore = VersionedHost.restore

    def forgetful(self: VersionedHost, file: BinaryIO) -> None:
        restore(self, file)
        self.counts = dict.fromkeys(self.counts, 0)

    patch.setattr(VersionedHost, "restore", forgetful)


@bug("code that is too old applies what follows by the rules it has", quick=True, way=Way.VERSIONS)
def _(patch: pytest.MonkeyPatch) -> None:
    def bold(self: Executor, index: int, term: int, code: codec.Code) -> None:
        try:
            _apply_code(self, index, term, code)
        except MachineHeld:
            self._code_from = index

    patch.setattr(Executor, "_apply_code", bold)


@bug("what was applied by newer code is decided by the last word of the log, wherever it stands", way=Way.VERSIONS)
def _(patch: pytest.MonkeyPatch) -> None:
    look = Executor._look_ahead

    def ahead(self: Executor, first_index: int, entries: Any) -> None:
        look(self, first_index, entries)
        codes = [item for _, item in entries if type(item) is bytes and codec.is_code(item)]
        if codes and self._mine is not None:
            said = codec.decode_request(codec.unstamp(codes[-1])[1])
            if isinstance(said, codec.Code) and said.version <= self._mine.version:
                _apply_code(self, first_index, 0, said)

    patch.setattr(Executor, "_look_ahead", ahead)
