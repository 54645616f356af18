"""Clocks and chance that an app reads around `ctx`: caught in the act, and hinted at by its text.

In the act      sys.setprofile while the app runs: every C function that it, or the standard library for it, calls. A wall clock, a
                monotonic clock, `os.urandom` or a generator is named with the app's own line, however it was imported.
By the text     calls of the same names, and writes to `self.x` outside `__init__` and `declare`: hints, for what no traffic reached.
"""

from __future__ import annotations

import ast
import datetime
import inspect
import os
import random
import re
import sys
import sysconfig
import textwrap
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Call", "Watched", "calls_in", "writes_in"]

CLOCKS = {getattr(time, n) for n in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "clock_gettime",
                                     "clock_gettime_ns", "localtime", "gmtime", "ctime", "process_time", "process_time_ns")}
NAMES = re.compile(r"\b(time\.(?:time|monotonic|perf_counter)(?:_ns)?|(?:datetime|date)\.(?:now|utcnow|today)|os\.urandom|secrets\.\w+|"
                   r"uuid\.uuid[14]|random\.\w+|(?:np|numpy)\.random\.\w+)$")
NATIVE = re.compile(r"(?<![\w.])(clock_gettime|gettimeofday|time|rand|random|rand_r|drand48|getrandom|rdtsc)\s*\(")
_LIBRARY = tuple(str(Path(p).resolve()) for p in {sysconfig.get_path("stdlib"), os.path.dirname(np.__file__)})
_OURS = str(Path(__file__).resolve().parent)


class Call(NamedTuple):
    """`what` was read at `where` ("file.py:12"); `kind`: "clock" or "chance"."""

    kind: str
    what: str
    where: str


class Watched:
    """`watched(method, *args)` calls it and adds to `calls` what it read around ctx."""

    def __init__(self) -> None:
        self.calls: set[Call] = set()

    def __call__(self, method: Callable[..., None], *args: Any) -> None:
        before, state = sys.getprofile(), np.random.get_state()
        sys.setprofile(self._event)
        try:
            method(*args)
        finally:
            sys.setprofile(before)
            if not _same(state, np.random.get_state()) and not any(c.what.startswith("numpy.random") for c in self.calls):
                self.calls.add(Call("chance", "numpy.random", getattr(method, "__qualname__", "")))

    def _event(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if event != "c_call" or (kind := _kind(arg)) is None:
            return
        what = _name(arg)
        at: types.FrameType | None = frame
        while at is not None and (code := at.f_code).co_filename:
            file = os.path.realpath(code.co_filename)
            if file.startswith(_OURS):
                return                          # ctx, or the checker itself
            if not file.startswith(_LIBRARY) and not file.startswith("<frozen"):
                self.calls.add(Call(kind, what, f"{os.path.basename(file)}:{at.f_lineno}"))
                return
            what = f"{at.f_globals.get('__name__', '?')}.{code.co_name}"
            at = at.f_back


def _kind(function: Any) -> str | None:
    try:
        if function in CLOCKS:
            return "clock"
    except TypeError:
        return None
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, datetime.date) and function.__name__ in ("now", "utcnow", "today"):
        return "clock"
    if function is os.urandom or function is getattr(os, "getrandom", None) or isinstance(owner, random.Random):
        return "chance"
    return "chance" if type(owner).__module__.startswith("numpy.random") else None


def _name(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    if isinstance(owner, types.ModuleType):
        return f"{'os' if owner.__name__ == 'posix' else owner.__name__}.{function.__name__}"
    kind = owner if isinstance(owner, type) else type(owner)
    if isinstance(owner, random.Random):
        return f"random.{function.__name__}"
    module = "numpy.random" if kind.__module__.startswith("numpy.random") else kind.__module__
    return f"{module}.{function.__name__}" if module == "numpy.random" else f"{module}.{kind.__name__}.{function.__name__}"


def _same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# ── by the text ──────────────────────────────────────────────────────────────────────────────────

def calls_in(cls: type) -> list[Call]:
    """Calls of clocks and chance in the text of the class, `__init__` left out; a .pyx beside its module counts as text."""
    out: list[Call] = []
    for file, tree in _texts(cls):
        for method in _methods(tree):
            if method.name == "__init__":
                continue
            for node in ast.walk(method):
                if isinstance(node, ast.Call) and (m := NAMES.search(ast.unparse(node.func))):
                    kind = "clock" if m[1].startswith(("time.", "date")) else "chance"
                    out.append(Call(kind, m[1], f"{file}:{node.lineno}"))
    source = _pyx(cls)
    if source is not None:
        for number, line in _lines(source, cls):
            if (n := NATIVE.search(line.partition("#")[0])) and not line.lstrip().startswith(("cdef extern", "def ", "cdef ")):
                out.append(Call("chance" if "rand" in n[1] else "clock", n[1], f"{source.name}:{number}"))
    return out


def writes_in(cls: type) -> dict[str, list[str]]:
    """attribute → the lines ("file.py:12") that write `self.attribute`, or into it, outside `__init__` and `declare`."""
    out: dict[str, list[str]] = {}
    for file, tree in _texts(cls):
        for method in _methods(tree):
            if method.name in ("__init__", "declare"):
                continue
            for node in ast.walk(method):
                for name in _written(node):
                    where = f"{file}:{node.lineno}"         # type: ignore[attr-defined]
                    if where not in out.setdefault(name, []):
                        out[name].append(where)
    source = _pyx(cls)
    if source is not None:
        for number, line in _lines(source, cls):
            for m in re.finditer(r"\bself\.(\w+)(?:\[[^\]]*\])? *(?:[-+*/|&^]|<<|>>)?=(?!=)", line.partition("#")[0]):
                out.setdefault(m[1], []).append(f"{source.name}:{number}")
    return out


_CHANGES = {"append", "add", "update", "pop", "popleft", "extend", "remove", "discard", "clear", "insert", "setdefault", "appendleft", "popitem"}


def _written(node: ast.AST) -> list[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        targets = [node.target]
    elif isinstance(node, ast.Delete):
        targets = node.targets
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
        targets = [node.func.value]
    out = []
    for target in targets:
        for t in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
            while isinstance(t, (ast.Subscript, ast.Starred)):
                t = t.value
            if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id == "self":
                out.append(t.attr)
    return out


def _texts(cls: type) -> list[tuple[str, ast.ClassDef]]:
    out = []
    for c in cls.__mro__:
        if c.__module__.startswith("nfckpt.") and c.__name__ in ("NetworkFunction", "PollingFunction", "NativeFunction"):
            continue
        try:
            lines, first = inspect.getsourcelines(c)
            tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        except (OSError, TypeError, SyntaxError, IndexError):
            continue
        if isinstance(tree, ast.ClassDef):
            ast.increment_lineno(tree, first - 1)
            out.append((os.path.basename(inspect.getsourcefile(c) or "?"), tree))
    return out


def _methods(tree: ast.ClassDef) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def _lines(source: Path, cls: type) -> list[tuple[int, str]]:
    """Numbered lines of a .pyx, without those of classes that `cls` does not derive from."""
    ours, inside, out = {c.__name__ for c in cls.__mro__}, "", []
    for number, line in enumerate(source.read_text().splitlines(), 1):
        if line[:1].strip():
            m = re.match(r"(?:cdef )?class (\w+)", line)
            inside = m[1] if m else ""
        if not inside or inside in ours:
            out.append((number, line))
    return out


def _pyx(cls: type) -> Path | None:
    where = Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or "")
    source = where.with_name(where.name.partition(".")[0] + ".pyx")
    return source if where.suffix == ".so" and source.exists() else None
