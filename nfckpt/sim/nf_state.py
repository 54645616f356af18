"""What an app keeps outside the arena: its attributes between two bursts, as fingerprints that two lives can compare.

Picture     Limiter.seen    twin after step 7: 56    killed run after step 7: 8      lost at the takeover
            Limiter._rules  twin: [...]              killed run: [...], made again   a cache, as the contract allows

Seen are instance attributes (slots, and public ones of a `cdef class`), class attributes and globals of the app's module; and the C
fields of a `cdef class`, by name where its .pyx lies beside it. Not seen: what lies in the arena, and what has no value of its
own (functions, locks, threads).
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import pickle
import re
import reprlib
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfckpt.native.arena import Arena, Writable
from nfckpt.native.burst import Burst
from nfckpt.native.function import NativeFunction
from nfckpt.native.parking import Parking
from nfckpt.native.structure import Structure
from nfckpt.nf import NetworkFunction, PollingFunction
from nfckpt.state.state import State

__all__ = ["Kept", "carry", "fields_of", "kept_by", "shared_by"]

BASES = {NetworkFunction, PollingFunction, NativeFunction, object}
DEPTH = 8
_IN_ARENA = (Arena, Structure, State, Parking, Burst)
_NO_VALUE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, property, classmethod, staticmethod)


class Kept(NamedTuple):
    """One value: its fingerprint, and how it reads."""

    print: str
    text: str


def kept_by(app: Any) -> dict[str, Kept]:
    """"Class.name" → value, of everything that dies with the object `app`."""
    out: dict[str, Kept] = {}
    cls = type(app)
    values = dict(getattr(app, "__dict__", {}))
    for c in cls.__mro__:
        if c in BASES:
            continue
        for name, member in vars(c).items():
            if isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType)) and not name.startswith("__"):
                try:
                    values.setdefault(name, getattr(app, name))
                except AttributeError:
                    continue            # a slot that is not set yet
    for name, value in values.items():
        if (kept := _kept(value)) is not None:
            out[f"{cls.__name__}.{name}"] = kept
    for name, (offset, size) in fields_of(cls).items():
        raw = ctypes.string_at(id(app) + offset, size)
        number = int.from_bytes(raw, "little") if size <= 8 else -1
        out.setdefault(f"{cls.__name__}.{name}", Kept(raw.hex(), str(number) if number >= 0 else f"{size} bytes"))
    return out


def shared_by(app: Any) -> dict[str, Kept]:
    """The same of what outlives the object in this process, but not in another: class attributes and the module's globals."""
    out: dict[str, Kept] = {}
    cls = type(app)
    for c in cls.__mro__:
        if c not in BASES:
            for name, value in vars(c).items():
                if not name.startswith("__") and not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)) \
                        and (kept := _kept(value)) is not None:
                    out[f"{c.__name__}.{name}"] = kept
    module = sys.modules.get(cls.__module__)
    for name, value in vars(module).items() if module else ():
        if not name.startswith("__") and not name.startswith("@") and (kept := _kept(value)) is not None:
            out[f"{cls.__module__}.{name}"] = kept
    return out


def carry(name: str, dead: Any, fresh: Any) -> None:
    """Give `fresh` what `dead` had in "Class.name": the experiment that tells whether it was this that a takeover lost."""
    name = name.partition(".")[2]
    field = fields_of(type(dead)).get(name)
    if field is not None:
        offset, size = field
        ctypes.memmove(id(fresh) + offset, ctypes.string_at(id(dead) + offset, size), size)
    else:
        setattr(fresh, name, getattr(dead, name))


# ── fingerprints ─────────────────────────────────────────────────────────────────────────────────

def _kept(value: Any) -> Kept | None:
    """None: in the arena, or without a value of its own."""
    if isinstance(value, (*_IN_ARENA, *_NO_VALUE)) or _is_view(value):
        return None
    h = hashlib.blake2b(digest_size=12)
    _feed(h, value, DEPTH, set())
    plain = isinstance(value, (int, float, str, bytes, list, tuple, dict, set, frozenset, np.generic, type(None)))
    text = reprlib.repr(value) if plain else type(value).__name__
    return Kept(h.hexdigest(), text if len(text) <= 40 else text[:37] + "...")


def _is_view(value: Any) -> bool:
    """A numpy view into an arena's mapping."""
    while isinstance(value, np.ndarray):
        value = value.base
    if isinstance(value, memoryview):
        value = value.obj
    return isinstance(value, (mmap.mmap, Writable))


def _feed(h: Any, value: Any, depth: int, seen: set[int]) -> None:
    h.update(type(value).__name__.encode() + b"\0")
    if isinstance(value, (*_IN_ARENA, *_NO_VALUE)) or _is_view(value):
        return
    if isinstance(value, (bool, int, float, complex, str, bytes, bytearray, type(None), np.generic)):
        h.update(repr(value).encode() + b"\0")
        return
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        h.update(repr((value.shape, value.dtype.descr)).encode() + value.tobytes())
        return
    if depth == 0 or id(value) in seen:
        return
    seen = seen | {id(value)}
    if isinstance(value, dict):
        for k, v in value.items():
            _feed(h, k, depth - 1, seen)
            _feed(h, v, depth - 1, seen)
    elif isinstance(value, (list, tuple)):
        for v in value:
            _feed(h, v, depth - 1, seen)
    elif isinstance(value, (set, frozenset)):
        for text in sorted(map(repr, value)):
            h.update(text.encode())
    elif hasattr(value, "__dict__") and type(value).__module__ != "builtins":
        _feed(h, vars(value), depth - 1, seen)
    else:
        try:                            # random.Random, deque, numpy generators: their own way to say all they are
            h.update(pickle.dumps(value))
        except Exception:               # a lock, a thread, a file: no value to compare
            return


# ── C fields ─────────────────────────────────────────────────────────────────────────────────────

_SIZES = {"bint": 4, "int": 4, "unsigned": 4, "long": 8, "size_t": 8, "Py_ssize_t": 8, "double": 8, "float": 4, "char": 1, "short": 2}
_SIZES |= {f"{u}int{n}_t": n // 8 for u in ("", "u") for n in (8, 16, 32, 64)}
_FIELD = re.compile(r"^(?P<indent>[ \t]+)cdef (?:public |readonly )?(?P<type>(?:const )?[\w.]+)(?P<names>(?: *\*+)? *\w+[^()=:]*)$")


def fields_of(cls: type) -> dict[str, tuple[int, int]]:
    """name → (offset, bytes) of the numbers in the C struct of a `cdef class`; "bytes 48" and so on where no source tells."""
    if not issubclass(cls, NativeFunction) or cls is NativeFunction:
        return {}
    if cls not in _known:
        _known[cls] = {}
        for c in cls.__mro__[:cls.__mro__.index(NativeFunction)]:
            if not c.__flags__ & 1 << 9 and c.__base__ is not None:         # no heap type: a cdef class
                first, end = c.__base__.__basicsize__, c.__basicsize__
                found = _declared(c, first, end)
                _known[cls] |= found if found is not None else {f"bytes {at}": (at, 8) for at in range(first, end, 8)}
    return _known[cls]


_known: dict[type, dict[str, tuple[int, int]]] = {}


def _declared(cls: type, first: int, end: int) -> dict[str, tuple[int, int]] | None:
    """By the class's text. None when there is none, or it does not add up to the size that the compiler made of it."""
    module = sys.modules[cls.__module__]
    where = Path(getattr(module, "__file__", None) or "").resolve()
    stem = where.with_name(where.name.partition(".")[0])
    for source in (stem.with_suffix(".pxd"), stem.with_suffix(".pyx")):
        text = source.read_text() if source.exists() else ""
        body = re.search(rf"^cdef class {cls.__name__}\b[^\n]*\n((?:[ \t]+[^\n]*\n|\n)*)", text, re.M)
        if body:
            constants = {m[1]: int(m[2]) for m in re.finditer(r"^\s+(\w+) = (\d+)\b", text, re.M)}
            fields = _layout(body[1], first, end, constants)
            if fields is not None:
                return fields
    return None


def _layout(body: str, at: int, end: int, constants: dict[str, int]) -> dict[str, tuple[int, int]] | None:
    fields: dict[str, tuple[int, int]] = {}
    indent = re.match(r"\s*?([ \t]+)\S", body)
    for line in body.splitlines():
        m = _FIELD.match(line.partition("#")[0].rstrip())
        if m is None or indent is None or m["indent"] != indent[1]:        # another: a variable of a method
            continue
        for part in m["names"].split(","):
            name, _, dimension = part.strip().partition("[")
            size = 8 if "*" in name else _SIZES.get(m["type"].removeprefix("const "), 8)       # else: an object
            count = dimension.rstrip("] ")
            n = constants.get(count, int(count) if count.isdigit() else 0) if count else 1
            if n == 0:
                return None             # an array as long as some constant of elsewhere: the rest has no place
            at = (at + size - 1) // size * size
            if "*" not in name and m["type"] in _SIZES:
                fields[name.strip()] = (at, size * n)
            at += size * n
    return fields if (at + 7) // 8 * 8 == end else None
