"""The fingerprint of code: which edits it sees and which it does not; the same everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from actorraft.pickling import fingerprint
from actorraft.pickling.fingerprint import fingerprint_of

BANK = '''\
"""A bank."""
import dataclasses
from dataclasses import dataclass
from functools import wraps

from . import fees
from .rules import round_up, LIMIT
from .rules import unused


def logged(function):
    @wraps(function)
    def inner(*args):
        return function(*args)

    return inner


def loud(function):
    return function


@dataclass
class Deposit:
    name: str
    amount: int = 1

    def apply(self, bank):
        return bank.add(self.name, self.amount)


class Base:
    step = 1

    def common(self):
        return self.step


class Bank(Base):
    """Keeps money."""

    limit = 10
    kinds = ("a", "b")

    def __init__(self):
        self.accounts = {}

    @logged
    def add(self, name, amount=1, *, note=None):
        """Add."""
        total = self.accounts.get(name, 0)  # what there was
        total += round_up(amount) + fees.of(amount)
        self.accounts[name] = min(total, LIMIT)
        return self.accounts[name]

    def all(self) -> list:
        double = [each * 2 for each in self.accounts.values()]
        return sorted(double, key=lambda one: one)

    def make(self, name):
        return Deposit(name)


def made(rate):
    class Closed:
        def apply(self, command):
            return command * rate

    return Closed


Two = made(2)
'''
RULES = """\
LIMIT = 100
OTHER = 5


def round_up(amount):
    return amount + _half()


def _half():
    return 0


def unused():
    return 1
"""
FEES = """\
RATE = 1


def of(amount):
    return amount * RATE
"""
SAME, OTHER = True, False
IN_BANK, IN_RULES, IN_FEES = "bank.py", "rules.py", "fees.py"

# (file, what is replaced, by what, whether the fingerprint stays)
EDITS = {
    "a comment": (IN_BANK, "# what there was", "# another", SAME),
    "the module's docstring": (IN_BANK, '"""A bank."""', '"""Another."""', SAME),
    "a docstring": (IN_BANK, '"""Add."""', '"""Adds more."""', SAME),
    "no docstring": (IN_BANK, '    """Keeps money."""\n', "", SAME),
    "an annotation": (IN_BANK, "def all(self) -> list:", "def all(self) -> object:", SAME),
    "an annotation of a parameter": (IN_BANK, "def make(self, name):", "def make(self, name: str):", SAME),
    "an annotation of a field": (IN_BANK, "name: str\n", "name: object\n", SAME),
    "lines": (IN_BANK, "class Base:", "\n\n\nclass Base:", SAME),
    "a renamed local": (IN_BANK, "total", "amount_now", SAME),
    "a renamed local of a comprehension": (IN_BANK, "[each * 2 for each in", "[one * 2 for one in", SAME),
    "a renamed parameter of a lambda": (IN_BANK, "lambda one: one)", "lambda one: (one))", SAME),
    "quotes and brackets": (IN_BANK, 'kinds = ("a", "b")', "kinds = 'a', 'b'", SAME),
    "the order of methods": (
        IN_BANK,
        "    def make(self, name):\n        return Deposit(name)\n",
        "    pass\n",
        OTHER,
    ),
    "a helper that nobody reaches": (IN_RULES, "return 1", "return 2", SAME),
    "a constant that nobody reaches": (IN_RULES, "OTHER = 5", "OTHER = 6", SAME),
    "a method's body": (IN_BANK, "min(total, LIMIT)", "max(total, LIMIT)", OTHER),
    "a helper in the same package": (IN_RULES, "amount + _half()", "amount - _half()", OTHER),
    "a helper's helper": (IN_RULES, "return 0", "return 1", OTHER),
    "a helper that is reached through its module": (IN_FEES, "amount * RATE", "amount + RATE", OTHER),
    "a constant of such a helper": (IN_FEES, "RATE = 1", "RATE = 2", OTHER),
    "a constant of a module": (IN_RULES, "LIMIT = 100", "LIMIT = 200", OTHER),
    "a default": (IN_BANK, "amount=1, *", "amount=2, *", OTHER),
    "a default by keyword": (IN_BANK, "note=None", "note=1", OTHER),
    "a constant of the class": (IN_BANK, "limit = 10", "limit = 11", OTHER),
    "a decorator": (IN_BANK, "    @logged", "    @loud", OTHER),
    "a decorator less": (IN_BANK, "    @logged\n", "", OTHER),
    "a decorator's own code": (IN_BANK, "return function(*args)", "return function(*args) or 1", OTHER),
    "a base class": (IN_BANK, "class Bank(Base)", "class Bank", OTHER),
    "a constant of a base class": (IN_BANK, "step = 1", "step = 2", OTHER),
    "a method of a base class": (IN_BANK, "return self.step", "return -self.step", OTHER),
    "a field's default of a command class": (IN_BANK, "amount: int = 1", "amount: int = 2", OTHER),
    "the order of fields": (
        IN_BANK,
        "    name: str\n    amount: int = 1\n",
        "    amount: int = 1\n    name: str = ''\n",
        OTHER,
    ),
    "an operator's kind": (IN_BANK, "each * 2", "each ** 2", OTHER),
    "a number's type": (IN_BANK, "limit = 10", "limit = 10.0", OTHER),
    "a renamed parameter": (IN_BANK, "def make(self, name):\n        return Deposit(name)", "def make(self, who):\n        return Deposit(who)", OTHER),
    "another method": (IN_BANK, "    def make(self", "    def more(self):\n        return 1\n\n    def make(self", OTHER),
}  # fmt: skip

ASK = """
import importlib, json, sys
sys.dont_write_bytecode = True
sys.path[:0] = [{root!r}, {home!r}]
from actorraft.pickling.fingerprint import fingerprint_of
for part in {name!r}.split(":")[:1]:
    found = importlib.import_module(part)
print(json.dumps(" ".join(fingerprint_of(getattr(found, each)) for each in {name!r}.split(":")[1].split())))
"""
ROOT = str(Path(fingerprint.__file__).parent.parent.parent)


def write(home: Path, **edited: str) -> Path:
    (home / "shop").mkdir(parents=True)
    (home / "shop" / "__init__.py").write_text("")
    for name, source in {"bank": BANK, "rules": RULES, "fees": FEES, **edited}.items():
        (home / "shop" / f"{name}.py").write_text(source)
    return home


def asked(
    home: Path, name: str = "shop.bank:Bank", *, python: str = sys.executable, seed: str = "0", flag: str = "-s"
) -> str:
    """Ask a process of its own, of one name or several; `python` need not have the library's dependencies."""
    script = ASK.format(root=ROOT, home=str(home), name=name)
    if python != sys.executable:
        script = script.replace(
            "from actorraft.pickling.fingerprint import fingerprint_of",
            f"import runpy; fingerprint_of = runpy.run_path({fingerprint.__file__!r})['fingerprint_of']",
        )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([python, flag, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout))


def here(home: Path, monkeypatch: pytest.MonkeyPatch, name: str = "shop.bank:Bank") -> str:
    """Ask in this process, with modules that are forgotten again."""
    module, _, qualname = name.partition(":")
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for each in [each for each in sys.modules if each == "shop" or each.startswith("shop.")]:
        del sys.modules[each]
    __import__(module)
    try:
        return fingerprint.fingerprint_of(getattr(sys.modules[module], qualname))
    finally:
        for each in [each for each in sys.modules if each == "shop" or each.startswith("shop.")]:
            del sys.modules[each]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_seen_if_it_may_change_what_commands_do(
    edit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, before, after, stays = EDITS[edit]
    name = file.removesuffix(".py")
    source = {"bank": BANK, "rules": RULES, "fees": FEES}[name]
    assert before in source
    with monkeypatch.context() as patch:
        first = here(write(tmp_path / "a"), patch)
    with monkeypatch.context() as patch:
        second = here(write(tmp_path / "b", **{name: source.replace(before, after)}), patch)
    assert (first == second) is stays


def test_the_order_of_methods_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = "    def make(self, name):\n        return Deposit(name)\n"
    moved = BANK.replace(method, "").replace("    def __init__", method + "\n    def __init__")
    with monkeypatch.context() as patch:
        first = here(write(tmp_path / "a"), patch)
    with monkeypatch.context() as patch:
        assert here(write(tmp_path / "b", bank=moved), patch) == first


def test_what_a_closure_holds_is_part_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        first = here(write(tmp_path / "a"), patch, "shop.bank:Two")
    with monkeypatch.context() as patch:
        other = write(tmp_path / "b", bank=BANK.replace("made(2)", "made(3)"))
        assert here(other, patch, "shop.bank:Two") != first


def test_a_rate_that_two_names_stand_for_is_not_mistaken() -> None:
    def outer(x: int) -> int:
        def inner(y: int) -> int:
            return x + y

        return inner(x)

    def swapped(x: int) -> int:
        def inner(y: int) -> int:
            return y + y

        return inner(x)

    assert fingerprint.fingerprint_of(outer) != fingerprint.fingerprint_of(swapped)


def test_it_is_the_same_in_every_process_and_under_every_hash_seed(tmp_path: Path) -> None:
    home = write(tmp_path)
    assert asked(home, seed="1") == asked(home, seed="2")


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_it_is_the_same_under_every_python(tmp_path: Path, minor: int) -> None:
    found = shutil.which(f"python3.{minor}")
    versions = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3.{minor}"))
    python = str(versions[0]) if versions else found
    if sys.version_info[:2] == (3, minor):
        python = sys.executable
    if python is None:
        pytest.skip(f"there is no Python 3.{minor} here")
    home = write(tmp_path)
    assert asked(home, python=python) == asked(home)


ASSERTS = {
    "None": "return self.common()",
    "Argument": "assert amount > 0\n        return self.common()",
    "Text": "assert self.step, 'none'\n        return self.common()",
    "Inner": "return [self.common(), lambda: 1] if amount else self.checked()\n"
    "    def checked(self):\n        for each in (1, 2):\n            assert each\n        return 1",
    "Debug": "return self.common() if __debug__ else 0",
}


def test_it_is_another_one_under_an_option_that_leaves_out_what_the_code_asserts(tmp_path: Path) -> None:
    classes = [f"class {name}(Bank):\n    def take(self, amount):\n        {body}\n" for name, body in ASSERTS.items()]
    home = write(tmp_path, bank="\n\n".join([BANK, *classes]).replace("class None", "class Nothing"))
    names = "shop.bank:" + " ".join(["Bank", "Nothing", *list(ASSERTS)[1:]])
    plain, optimized, more = (asked(home, names, flag=flag).split() for flag in ("-s", "-O", "-OO"))
    assert [one == other for one, other in zip(plain, optimized, strict=True)] == [True, True, *[False] * 4]
    assert optimized == more


def test_it_is_the_same_in_a_zip(tmp_path: Path) -> None:
    home = write(tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        for file in sorted((home / "shop").iterdir()):
            archive.write(file, f"shop/{file.name}")
    assert asked(tmp_path / "shop.zip") == asked(home)


def test_without_a_source_there_is_one_all_the_same(tmp_path: Path) -> None:
    home = write(tmp_path)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", str(home)], check=True)
    for file in (home / "shop").glob("*.py"):
        file.unlink()
    assert len(asked(home)) == 32


def test_a_reloaded_module_has_the_new_one(tmp_path: Path) -> None:
    home = write(tmp_path)
    script = f"""
import importlib, sys
sys.dont_write_bytecode = True
sys.path[:0] = [{ROOT!r}, {str(home)!r}]
from pathlib import Path
from actorraft.pickling.fingerprint import fingerprint_of
import shop.bank
first = fingerprint_of(shop.bank.Bank)
path = Path(shop.bank.__file__)
path.write_text(path.read_text().replace("limit = 10", "limit = 11"))
importlib.reload(shop.bank)
assert fingerprint_of(shop.bank.Bank) != first
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class Hostile:
    """An object that answers nothing."""

    def __getattribute__(self, name: str) -> object:
        raise OSError(name)


def test_nothing_is_asked_of_the_user_s_objects_and_no_expression_is_too_deep(tmp_path: Path) -> None:
    held = Hostile()

    class Holds:
        attribute = held

        def apply(self, command: object) -> object:
            return held

    assert len(fingerprint.fingerprint_of(Holds)) == 32
    deep = "LIMIT = " + " + ".join(["1"] * 900)
    assert len(asked(write(tmp_path, rules=RULES.replace("LIMIT = 100", deep)))) == 32


def closes_over_itself() -> type:
    class Itself:
        def method(self) -> type:
            return Itself

    return Itself


def of_a_metaclass_that_answers_nothing() -> type:
    class Throwing(type):
        def __getattr__(cls, name: str) -> Any:
            raise SystemExit(name)

    class Unanswering(metaclass=Throwing):
        """Of it."""

    return Unanswering


def of_a_metaclass_that_raises_for_what_every_class_has() -> type:
    class Mean(type):
        def __getattribute__(cls, name: str) -> Any:
            raise KeyboardInterrupt(name)

    return Mean("Meant", (), {})


def in_the_closures_of_its_base() -> type:
    class Quack(Protocol):
        def quack(self) -> str: ...

    class Duck(Quack):
        pass

    return Duck


@pytest.mark.parametrize(
    "make",
    [
        closes_over_itself,
        of_a_metaclass_that_answers_nothing,
        of_a_metaclass_that_raises_for_what_every_class_has,
        in_the_closures_of_its_base,
    ],
)
def test_a_class_that_is_reached_from_itself_or_has_a_metaclass_that_raises_has_a_fingerprint(
    make: Callable[[], type],
) -> None:
    code = make()
    assert fingerprint_of(code) == fingerprint_of(code) != fingerprint_of(int)


def test_a_state_of_an_installed_package_is_known_by_its_version_and_nothing_of_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pandas as pd

    class Own(dict[str, int]):
        pass

    read: list[str] = []
    monkeypatch.setattr(fingerprint, "_load", read.append)
    frame, series = (fingerprint.fingerprint_of(each, only_holds=True) for each in (pd.DataFrame, pd.Series))
    assert read == []
    fingerprint.fingerprint_of(pd.DataFrame)
    assert "pandas.core.frame" in read, "else it is"
    monkeypatch.undo()
    assert frame != series
    assert fingerprint.fingerprint_of(Own, only_holds=True) == fingerprint.fingerprint_of(Own)
