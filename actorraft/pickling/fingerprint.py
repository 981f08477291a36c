"""The fingerprint of a machine's code: equal where the same commands give the same results, as far as text can tell.

It is made from the syntax trees of the sources, never from byte code: of the class and its bases, and of what their
code reaches by a name in modules of the same package (helpers, constants, command classes). So it is the same on every
machine, in every process and under every Python minor, and blind to what changes nothing: comments, docstrings, line
numbers, annotations, the names of locals, the order of methods. Under -O code has no asserts, and no fingerprint that
would say so.

What it cannot see: what is reached otherwise than by a name (getattr, a registry that is filled elsewhere, a patched
method), other packages, and code without a source, of which it knows the name only. The digests of checks are the
second net (node/digests.py).

Source:     docs/decisions/0031.
Not here:   who records it and who refuses (node/rules.py).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import linecache
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from actorraft.loggers import guarded_logger
from actorraft.machine import Method
from actorraft.pickling import exceptions

logger = guarded_logger("actorraft")

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_COMPREHENSIONS: Final = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Says nothing of what the code does; some of it is not in every minor.
_SILENT: Final = frozenset(("annotation", "returns", "type_comment", "type_params", "ctx", "kind", "type_ignores"))
_FOREIGN: Final = frozenset(("actorraft", *sys.stdlib_module_names))
_SCALARS: Final = (bool, int, float, complex, str, bytes, type(None))
DEPTH_MAX: Final = 8  # of what a closure holds


def fingerprint_of(machine: Any, *, only_holds: bool = False) -> str:
    """Return 32 hexadecimal digits for the code of a machine's class, or of any class or function.

    Args:
        only_holds: it is a state that commands bring their own code to. Of one from an installed package the version
            says enough then; a walk through the whole of pandas takes seconds on every node.
    """
    release = _release_of(machine) if only_holds else ""
    if release:
        return hashlib.sha256(release.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    walk = _Walk()
    try:
        walk.take(machine)
    except BaseException as error:  # a metaclass is user code: only its name is known, then
        what = exceptions.name(machine) if isinstance(machine, type) else exceptions.name(type(machine))
        logger.warning("changes of %s's code cannot be told: it raised %s", what, exceptions.summary(error))
        walk = _Walk()
        walk.unreadable(what)
    return walk.result()


def late_imports(machine: type) -> list[tuple[str, str]]:
    """Return (method, module) for what a class's methods import only when they are called, as far as there is source.

    An import inside a `try` is left out: whoever writes that knows what to do without it.
    """
    found: list[tuple[str, str]] = []
    try:
        for each in machine.__mro__:
            source = None if _is_foreign(str(each.__module__)) else _module_of(each)
            node = _find(source.tree, each) if source is not None else None
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef):
                    found += [(f"{each.__qualname__}.{method.name}", name) for name in _imported_in(method)]
    except BaseException:  # a metaclass is user code, and this is only a forecast
        return []
    return found


def _imported_in(node: ast.AST) -> Iterator[str]:
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            if inner.module is not None and inner.level == 0:
                yield inner.module
        elif not (isinstance(inner, ast.Try) and inner.handlers):
            yield from _imported_in(inner)


class _Module:
    """The source of a module, and what its names are bound to at its top level."""

    def __init__(self, name: str, file: str, tree: ast.Module) -> None:
        self.name, self.file, self.tree = name, file, tree
        self.bindings: dict[str, list[ast.stmt]] = {}
        self.stars: list[str] = []
        self._package = name if Path(file).name == "__init__.py" else name.rpartition(".")[0]
        self._bind(tree.body)

    def _bind(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            for name in _names_bound_by(statement):
                self.bindings.setdefault(name, []).append(statement)
            if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
                self.stars.append(self.source_of(statement))
            if not isinstance(statement, _Definition):
                for field in ("body", "orelse", "finalbody"):
                    self._bind(getattr(statement, field, ()))
                for handler in getattr(statement, "handlers", ()):
                    self._bind(handler.body)

    def source_of(self, statement: ast.ImportFrom) -> str:
        """Return the whole name of the module that is imported from."""
        if not statement.level:
            return statement.module or ""
        parts = self._package.split(".")
        parts = parts[: len(parts) - statement.level + 1]
        return ".".join([*parts, statement.module] if statement.module else parts)


def _names_bound_by(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield statement.name
        case ast.Import() | ast.ImportFrom():
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0]
        case ast.Assign() | ast.AugAssign() | ast.AnnAssign() | ast.For() | ast.With():
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id


class _Walk:
    """Collects the code that a class or function reaches, each piece once."""

    def __init__(self) -> None:
        self._pieces: dict[str, str] = {}  # what it is -> what it does
        self._taken: set[int] = set()  # classes whose closures are known: they may close over themselves
        self._home: _Module | None = None

    def result(self) -> str:
        """Return the digits of all that was taken."""
        text = "\n".join(f"{name} {self._pieces[name]}" for name in sorted(self._pieces))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def unreadable(self, name: str) -> None:
        """Know of something no more than its name."""
        self._pieces[name] = "unreadable"

    # --- Objects ---

    def take(self, code: Any) -> None:
        """Take a class with its bases, or a function."""
        if isinstance(code, type):
            for each in code.__mro__:
                if id(each) not in self._taken and not _is_foreign(str(each.__module__)):
                    self._taken.add(id(each))
                    self._take_definition(each)
                    self._take_cells(each)
        elif isinstance(code, types.FunctionType):
            self._take_definition(code)
            self._take_closure(code, 0)

    def _take_definition(self, code: Any) -> None:
        name = f"{code.__module__}:{code.__qualname__}"
        if name in self._pieces:
            return
        module = _module_of(code)
        node = _find(module.tree, code) if module is not None else None
        if module is None or node is None:
            self._pieces[name] = "no source"
            return
        if self._home is None:
            self._home = module
        self._take_node(name, node, module)

    def _take_cells(self, cls: type) -> None:
        for name, value in sorted(vars(cls).items()):
            for function in _functions_in(value):
                self._take_closure(function, 0, f"{cls.__qualname__}.{name}")

    def _take_closure(self, function: types.FunctionType, depth: int, name: str = "") -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for variable, cell in sorted(cells, key=lambda each: each[0]):
            try:
                value = cell.cell_contents
            except ValueError:
                continue  # not bound yet
            if variable != "__class__":
                key = f"{function.__module__}:{name or function.__qualname__} closes over {variable}"
                self._pieces[key] = self._value(value, depth)

    def _value(self, value: Any, depth: int) -> str:
        """Say what a closure holds, as far as that is plain data or code."""
        kind = type(value)
        if kind in _SCALARS:
            return f"{kind.__name__} {value!r}"
        if depth < DEPTH_MAX:
            if kind in (list, tuple):
                return f"{kind.__name__} ({', '.join(self._value(each, depth + 1) for each in value)})"
            if kind in (set, frozenset):
                return f"{kind.__name__} ({', '.join(sorted(self._value(each, depth + 1) for each in value))})"
            if kind is dict:
                pairs = (f"{self._value(k, depth + 1)}: {self._value(v, depth + 1)}" for k, v in value.items())
                return f"dict ({', '.join(pairs)})"
            if kind is types.FunctionType or issubclass(kind, type):
                if kind is types.FunctionType and not _is_foreign(str(value.__module__)):
                    self._take_definition(value)
                    self._take_closure(value, depth + 1)
                elif issubclass(kind, type):
                    self.take(value)
                return f"code {value.__module__}:{value.__qualname__}"
        return f"a {kind.__module__}:{kind.__qualname__}"

    # --- Syntax ---

    def _take_node(self, name: str, node: ast.AST, module: _Module) -> None:
        self._pieces[name] = ""  # it may reach itself
        normal = _Normal()
        try:
            self._pieces[name] = normal.text(node)
        except RecursionError:  # a sum of hundreds of terms; of this piece only the name is known
            self._pieces[name] = "too deep"
        for path in sorted(normal.reached):
            self._reach(path.split("."), module)

    def _reach(self, path: list[str], module: _Module) -> None:
        """Take what a dotted name of a module means, if it is this package's."""
        statements = module.bindings.get(path[0])
        if statements is None:
            for star in module.stars:
                imported = self._near(star)
                if imported is not None and path[0] in imported.bindings:
                    self._reach(path, imported)
            return
        for number, statement in enumerate(statements):
            if isinstance(statement, ast.Import):
                self._reach_import(path, statement)
            elif isinstance(statement, ast.ImportFrom):
                alias = next(each for each in statement.names if (each.asname or each.name) == path[0])
                source = module.source_of(statement)
                imported = self._near(f"{source}.{alias.name}")
                if imported is not None and len(path) > 1:
                    self._reach(path[1:], imported)
                elif (imported := self._near(source)) is not None and imported is not module:
                    self._reach([alias.name, *path[1:]], imported)
            else:
                name = f"{module.name}:{path[0]}" + (f" #{number}" if number else "")
                if name not in self._pieces:
                    self._take_node(name, statement, module)

    def _reach_import(self, path: list[str], statement: ast.Import) -> None:
        for alias in statement.names:
            if (alias.asname or alias.name.partition(".")[0]) != path[0]:
                continue
            dotted = alias.name.split(".") if alias.asname else [path[0]]
            rest = path[1:]
            while rest:
                imported = self._near(".".join(dotted))
                if imported is not None and rest[0] in imported.bindings:
                    self._reach(rest, imported)
                    break
                dotted, rest = [*dotted, rest[0]], rest[1:]

    def _near(self, name: str) -> _Module | None:
        """Return a module of the same package as the machine's, or beside it where that is in none."""
        home = self._home
        if home is None or not name or _is_foreign(name):
            return None
        same = name.partition(".")[0] == home.name.partition(".")[0] and "." in home.name
        found = _load(name)
        if found is None or same:
            return found
        beside = Path(found.file).parent == Path(home.file).parent and "site-packages" not in found.file
        return found if beside else None


def _release_of(cls: Any) -> str:
    """Return a class's name and the version of the installed package that it comes from; "" where there is none."""
    package = sys.modules.get(str(cls.__module__).partition(".")[0])
    version = vars(package).get("__version__") if package is not None else None
    installed = "site-packages" in str(getattr(package, "__file__", ""))
    return f"{cls.__module__}:{cls.__qualname__} {version}" if installed and isinstance(version, str) else ""


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] in _FOREIGN


def _functions_in(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions that an attribute of a class is made of."""
    for _ in range(DEPTH_MAX):
        if type(value) is types.FunctionType:
            yield value
        if issubclass(type(value), property):
            for part in (value.fget, value.fset, value.fdel):
                if type(part) is types.FunctionType:
                    yield part
            return
        if issubclass(type(value), staticmethod | classmethod):
            value = value.__func__
            continue
        if type(value) is not types.FunctionType and not issubclass(type(value), Method):
            return  # nothing is asked of the user's own objects
        held = value.__dict__
        value = held.get("__wrapped__") or held.get("function")


# --- Sources ---


def _module_of(code: Any) -> _Module | None:
    name = str(code.__module__)
    found = _load(name)
    if found is not None and _find(found.tree, code) is not None:
        return found
    file = _file_of(code)
    return _parse(name, file, "".join(linecache.getlines(file))) if file else None


def _file_of(code: Any) -> str:
    """Return where code says that it was written: of code that travelled by value the module may not be here."""
    parts = (
        [code] if isinstance(code, types.FunctionType) else [f for v in vars(code).values() for f in _functions_in(v)]
    )
    own = [each for each in parts if each.__module__ == code.__module__]
    return own[0].__code__.co_filename if own else ""


def _load(name: str) -> _Module | None:
    """Read a module's source, from wherever it is loaded from; import nothing."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    try:
        if spec is None and module is None:
            spec = importlib.util.find_spec(name)
        loader = getattr(spec, "loader", None) or getattr(module, "__loader__", None)
        get_source = getattr(loader, "get_source", None)
        source = get_source(name) if get_source is not None else None
    except (ImportError, AttributeError, ValueError, OSError, SyntaxError):
        return None
    file = getattr(spec, "origin", None) or getattr(module, "__file__", None) or ""
    return _parse(name, file, source) if source else None


@functools.lru_cache(maxsize=256)
def _parse(name: str, file: str, source: str) -> _Module | None:
    try:
        return _Module(name, file, ast.parse(source))
    except (SyntaxError, ValueError, RecursionError):
        return None


def _find(tree: ast.Module, code: Any) -> ast.AST | None:
    """Find a definition by its qualified name; of several, the one at its line."""
    found: list[ast.AST] = [tree]
    for part in code.__qualname__.split("."):
        if part == "<locals>":
            continue
        inner = [node for each in found for node in _scope(each)]
        if part == "<lambda>":
            found = [node for each in found for node in ast.walk(each) if isinstance(node, ast.Lambda)]
        else:
            found = [node for node in inner if isinstance(node, _Definition) and node.name == part]
    line = code.__code__.co_firstlineno if type(code) is types.FunctionType else None
    if len(found) > 1 and line is not None:
        found = [node for node in found if line in _lines(node)]
    return found[-1] if found else None


def _lines(node: Any) -> list[int]:
    return [node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))]


def _scope(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is in a scope, and not what is in scopes within it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _Definition | ast.Lambda):
            yield from _scope(child)


# --- Normal form ---


class _Normal:
    """Writes a syntax tree down without what changes nothing, and notes which global names it reads.

    Attributes:
        reached: dotted names of globals.
    """

    def __init__(self) -> None:
        self.reached: set[str] = set()
        self._scopes: list[dict[str, str]] = []  # of the functions about: name -> what stands for it
        self._count = 0

    def text(self, node: Any) -> str:
        """Return the text that stands for a node and all below it."""
        match node:
            case None | bool() | int() | float() | complex() | str() | bytes():
                return f"{type(node).__name__} {node!r}"
            case list():
                return f"[{', '.join(self.text(each) for each in node)}]"
            case ast.ClassDef():
                return self._class(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                return self._function(node)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                return self._comprehension(node)
            case ast.Assert() if not __debug__:
                return ""  # under -O it is not done, and what it raised is not raised again
            case ast.AnnAssign() if node.value is None and self._scopes:
                return ""  # of a local, and nothing happens
            case ast.AnnAssign():
                return f"Assign([{self.text(node.target)}], {self.text(node.value)})"
            case ast.Assign():
                return f"Assign({self.text(node.targets)}, {self.text(node.value)})"
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                self._note_path(node)
                return f"Attribute({self.text(node.value)}, {node.attr})"
            case ast.ExceptHandler():
                name = self._local(node.name) if node.name else None
                return f"ExceptHandler({self.text(node.type)}, {name}, {self.text(node.body)})"
            case ast.Global() | ast.Nonlocal():
                return f"{type(node).__name__}({', '.join(sorted(self._local(name) for name in node.names))})"
            case ast.alias() if self._scopes:
                return f"alias({node.name}, {self._local(node.asname or node.name.partition('.')[0])})"
            case ast.MatchAs() | ast.MatchStar() if node.name is not None:
                inner = self.text(getattr(node, "pattern", None))
                return f"{type(node).__name__}({inner}, {self._local(node.name)})"
            case ast.AST():
                return self._other(node)
        return f"{type(node).__name__} {node!r}"  # Ellipsis

    def _other(self, node: ast.AST) -> str:
        fields = (f"{name}={self.text(value)}" for name, value in ast.iter_fields(node) if name not in _SILENT)
        return f"{type(node).__name__}({', '.join(fields)})"

    def _class(self, node: ast.ClassDef) -> str:
        head = f"{self.text(node.decorator_list)}, {self.text(node.bases)}, {self.text(node.keywords)}"
        body = _without_docstring(node.body)
        methods = sorted((one for one in body if isinstance(one, _Definition)), key=lambda one: one.name)
        others = [one for one in body if not isinstance(one, _Definition)]
        return f"Class({node.name}, {head}, {self.text(others)}, {self.text(list(methods))})"

    def _function(self, node: _Function) -> str:
        outside = [] if isinstance(node, ast.Lambda) else node.decorator_list
        defaults = [*node.args.defaults, *node.args.kw_defaults]
        head = f"{self.text(outside)}, {self.text(defaults)}"
        names = [each.arg for each in _parameters(node.args)]
        kinds = (
            len(node.args.posonlyargs),
            len(node.args.args),
            node.args.vararg is not None,
            len(node.args.kwonlyargs),
        )
        body = [node.body] if isinstance(node, ast.Lambda) else _without_docstring(node.body)
        scope = {name: name for name in names}  # callers may say them
        inside = [one for each in body for one in _inside(each)]
        not_ours = {name for one in inside if isinstance(one, ast.Global | ast.Nonlocal) for name in one.names}
        for each in body:
            for name in _bound_in(each):
                if name not in scope and name not in not_ours:
                    scope[name] = self._fresh()
        self._scopes.append(scope)
        does = self.text(body)
        self._scopes.pop()
        kind = type(node).__name__
        own = "" if isinstance(node, ast.Lambda) else self._local(node.name)
        return f"{kind}({own}, {head}, {names}, {kinds}, {does})"

    def _comprehension(self, node: Any) -> str:
        scope: dict[str, str] = {}
        for generator in node.generators:
            for each in ast.walk(generator.target):
                if isinstance(each, ast.Name):
                    scope.setdefault(each.id, self._fresh())
        first = self.text(node.generators[0].iter)  # outside of the scope
        self._scopes.append(scope)
        text = f"{first}, {self._other(node)}"
        self._scopes.pop()
        return text

    def _fresh(self) -> str:
        self._count += 1
        return f"local{self._count}"

    def _local(self, name: str) -> str:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return name

    def _name(self, node: ast.Name) -> str:
        for scope in reversed(self._scopes):
            if node.id in scope:
                return f"Name({scope[node.id]})"
        self.reached.add(node.id)
        return "Name(under -O)" if node.id == "__debug__" and not __debug__ else f"Name({node.id})"

    def _note_path(self, node: ast.Attribute) -> None:
        parts = [node.attr]
        value = node.value
        while isinstance(value, ast.Attribute):
            parts.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name) and not any(value.id in scope for scope in self._scopes):
            self.reached.add(".".join([value.id, *reversed(parts)]))


def _parameters(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (each for each in (arguments.vararg, arguments.kwarg) if each is not None)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """Leave out texts that stand alone: they are for people."""
    return [
        one
        for one in body
        if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str))
        and not isinstance(one, ast.Pass)
    ]


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node, and what is below it in the same scope."""
    yield node
    if not isinstance(node, (*_COMPREHENSIONS, ast.Lambda, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        for child in ast.iter_child_nodes(node):
            yield from _inside(child)
    elif isinstance(node, _COMPREHENSIONS):
        for child in ast.walk(node):
            if isinstance(child, ast.NamedExpr):
                yield child.target


def _bound_in(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement makes local to its function, in order."""
    for each in _inside(node):
        match each:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.ExceptHandler(name=str() as name):
                yield name
            case ast.MatchAs(name=str() as name) | ast.MatchStar(name=str() as name):
                yield name
            case ast.MatchMapping(rest=str() as name):
                yield name
            case ast.alias():
                yield each.asname or each.name.partition(".")[0]
