"""The cipher of TCP records: both libraries make the same bytes, neither opens what was tampered with, and the loader says what it found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nfckpt.native import aead

KEY, HEADER = bytes(range(32)), b"8 bytes."
BOTH = pytest.mark.parametrize("cipher", [aead.LibcryptoAead, aead.PackageAead])


@BOTH
def test_records_are_those_of_the_cryptography_library(cipher: type[aead.Aead]) -> None:
    seals, opens, other = cipher(KEY, seals=True), cipher(KEY, seals=False), AESGCM(KEY)
    for n, size in enumerate((0, 8, 16, 4096, 131072)):
        plain = os.urandom(size)
        raw = seals.seal_record(HEADER, plain)
        assert raw == other.encrypt(n.to_bytes(12, "little"), plain, HEADER)
        assert opens.open_record(HEADER, raw) == plain
    assert seals.count == opens.count == 5


@BOTH
def test_nothing_that_was_touched_opens(cipher: type[aead.Aead]) -> None:
    raw = cipher(KEY, seals=True).seal_record(HEADER, b"x" * 24)
    for at in range(len(raw)):
        assert cipher(KEY, seals=False).open_record(HEADER, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:]) is None
    assert cipher(KEY, seals=False).open_record(b"8 Bytes.", raw) is None
    assert cipher(bytes(32), seals=False).open_record(HEADER, raw) is None
    late = cipher(KEY, seals=False)
    assert late.open_record(HEADER, raw) == b"x" * 24 and late.open_record(HEADER, raw) is None      # replayed: another nonce is due


@BOTH
def test_a_key_has_32_bytes(cipher: type[aead.Aead]) -> None:
    with pytest.raises(ValueError):
        cipher(b"short", seals=True)


ABSENT = "def find(name): raise OSError(name)"
WRONG = """
class find:
    def __init__(self, name): self.lib = real(name)
    def __getattr__(self, name): return getattr(self.lib, name.replace("aes_256_gcm", "aes_256_ccm"))
"""
INCOMPLETE = "class find:\n    def __init__(self, name): pass"


@pytest.mark.parametrize(("find", "said"), [(ABSENT, "no libcrypto.so.3"), (WRONG, "known answer"), (INCOMPLETE, "EVP_aes_256_gcm")])
def test_without_a_libcrypto_that_can_be_trusted_the_package_serves(find: str, said: str) -> None:
    code = f"""
import ctypes
real = ctypes.CDLL
{find}
ctypes.CDLL = find
from nfckpt.native import aead
ctypes.CDLL = real
assert aead.make is aead.PackageAead and "with the GIL" in aead.IN_USE, aead.IN_USE
try:
    aead.LibcryptoAead(bytes(32), seals=True)
except Exception as e:
    assert "no libcrypto" in str(e)
else:
    raise AssertionError
from nfckpt.observe import doctor
check = doctor._try("channel cipher", doctor._cipher, "install it")
assert not check.ok and not check.required
from tests.test_wire_conformance import tcp_pair
a, b = tcp_pair()
assert a.send(1, b"through") and a.flush()
while (got := b.recv()) is None:
    pass
assert got == (1, b"through")
print(aead.IN_USE)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and said in done.stdout, done.stderr + done.stdout
