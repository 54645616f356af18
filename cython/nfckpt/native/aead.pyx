# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Aead: AES-256-GCM over the records of one direction, by a library that others keep; no cipher is ours.

    seal   header (8 bytes, in the clear), plain (n bytes)  ->  n + 16 bytes: ciphertext, tag
    open   header, the same n + 16 bytes                     ->  n bytes, or 0: not authentic
    nonce  96-bit record counter from 0, little endian; counted here and nowhere else, so that no nonce comes twice under a key

    LibcryptoAead   OpenSSL's libcrypto (1.1 or 3), found at run time: the one that Python's own hashlib and ssl have loaded. No header and
                    no link-time dependency: the few EVP functions below have had these prototypes since 1.1. Without the GIL.
    PackageAead     the `cryptography` package, where no libcrypto can be loaded (a Python that has it linked in): the same bytes,
                    but every record takes the GIL.

Which one is in use `IN_USE` says, and `nfckpt doctor`. A libcrypto that does not reproduce a published test vector is not used.

Source      NIST SP 800-38D (GCM); EVP_EncryptInit(3), "AEAD interface"; test case 16 of McGrew and Viega, "The Galois/Counter Mode of
            Operation".
"""
import ctypes

from nfckpt.errors import MachineError

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset
from nfckpt.native.arena cimport CHECK

cdef enum:
    HEADER_BYTES = 8
    CTRL_GET_TAG = 0x10         # EVP_CTRL_AEAD_GET_TAG
    CTRL_SET_TAG = 0x11

ctypedef void* (*ctx_new_t)() noexcept nogil
ctypedef void (*ctx_free_t)(void*) noexcept nogil
ctypedef void* (*cipher_t)() noexcept nogil
ctypedef int (*init_t)(void*, const void*, void*, const uint8_t*, const uint8_t*, int) noexcept nogil
ctypedef int (*update_t)(void*, uint8_t*, int*, const uint8_t*, int) noexcept nogil
ctypedef int (*final_t)(void*, uint8_t*, int*) noexcept nogil
ctypedef int (*ctrl_t)(void*, int, int, void*) noexcept nogil

cdef ctx_new_t ctx_new
cdef ctx_free_t ctx_free
cdef cipher_t aes_256_gcm
cdef init_t init
cdef update_t update
cdef final_t final
cdef ctrl_t ctrl


cdef class Aead:
    """One direction. `key`: 32 bytes, of this direction and session alone. `seals`: False opens. Not thread-safe."""

    def __init__(self, bytes key not None, *, bint seals):
        if len(key) != 32:
            raise ValueError("a key of 32 bytes")
        self.seals = seals

    cdef int _run(self, const uint8_t* nonce, const uint8_t* header, const uint8_t* data, uint32_t n, uint8_t* out) noexcept nogil:
        return 0

    cdef int seal(self, const uint8_t* header, const uint8_t* plain, uint32_t n, uint8_t* out) noexcept nogil:
        """1: n + TAG_BYTES bytes are in `out`. 0: the library failed."""
        CHECK(self.seals)
        return self._next(header, plain, n, out)

    cdef int open(self, const uint8_t* header, const uint8_t* sealed, uint32_t n, uint8_t* out) noexcept nogil:
        """1: the n bytes are in `out`, and authentic. 0: they are not, nothing in `out` may be used and the stream is over."""
        CHECK(not self.seals)
        return self._next(header, sealed, n, out)

    def seal_record(self, const uint8_t[::1] header not None, bytes plain not None):
        """The n + 16 bytes of the next record. For tests and tools."""
        cdef bytearray out = bytearray(len(plain) + TAG_BYTES)
        cdef uint8_t* to = <uint8_t*><char*>out
        if header.shape[0] != HEADER_BYTES or not self.seal(&header[0], <const uint8_t*>plain, <uint32_t>len(plain), to):
            raise ValueError("not sealed")
        return bytes(out)

    def open_record(self, const uint8_t[::1] header not None, bytes sealed not None):
        """The plaintext of the next record, or None: not authentic. For tests and tools."""
        cdef bytearray out = bytearray(len(sealed))
        cdef uint8_t* to = <uint8_t*><char*>out
        if header.shape[0] != HEADER_BYTES or len(sealed) < TAG_BYTES:
            return None
        if not self.open(&header[0], <const uint8_t*>sealed, <uint32_t>(len(sealed) - TAG_BYTES), to):
            return None
        return bytes(out[:len(sealed) - TAG_BYTES])

    cdef int _next(self, const uint8_t* header, const uint8_t* data, uint32_t n, uint8_t* out) noexcept nogil:
        cdef uint8_t nonce[12]
        memset(nonce, 0, 12)
        memcpy(nonce, &self.count, 8)
        self.count += 1
        return self._run(nonce, header, data, n, out)


cdef class LibcryptoAead(Aead):
    """By libcrypto, without the GIL. Raises MachineError where it is not to be had."""
    cdef void* ctx

    def __init__(self, bytes key not None, *, bint seals):
        super().__init__(key, seals=seals)
        if ctx_new == NULL:
            raise MachineError("no libcrypto is loaded")
        self.ctx = ctx_new()
        if self.ctx == NULL or init(self.ctx, aes_256_gcm(), NULL, <const uint8_t*>key, NULL, seals) != 1:
            raise MachineError("libcrypto refuses AES-256-GCM")

    def __dealloc__(self):
        if self.ctx != NULL:
            ctx_free(self.ctx)

    cdef int _run(self, const uint8_t* nonce, const uint8_t* header, const uint8_t* data, uint32_t n, uint8_t* out) noexcept nogil:
        cdef int got = 0
        if init(self.ctx, NULL, NULL, NULL, nonce, self.seals) != 1 or update(self.ctx, NULL, &got, header, HEADER_BYTES) != 1:
            return 0
        if n and update(self.ctx, out, &got, data, <int>n) != 1:
            return 0
        if not self.seals and ctrl(self.ctx, CTRL_SET_TAG, TAG_BYTES, <void*>(data + n)) != 1:
            return 0
        if final(self.ctx, out + n, &got) != 1:
            return 0
        return not self.seals or ctrl(self.ctx, CTRL_GET_TAG, TAG_BYTES, out + n) == 1


cdef class PackageAead(Aead):
    """By the `cryptography` package: the same bytes, with the GIL."""
    cdef object aes

    def __init__(self, bytes key not None, *, bint seals):
        super().__init__(key, seals=seals)
        self.aes = AESGCM(key)

    cdef int _run(self, const uint8_t* nonce, const uint8_t* header, const uint8_t* data, uint32_t n, uint8_t* out) noexcept nogil:
        with gil:
            try:
                if self.seals:
                    done = self.aes.encrypt(nonce[:12], data[:n], header[:HEADER_BYTES])
                else:
                    done = self.aes.decrypt(nonce[:12], data[:n + TAG_BYTES], header[:HEADER_BYTES])
            except (InvalidTag, MemoryError, OverflowError):
                return 0
            memcpy(out, <const uint8_t*><bytes>done, len(done))
            return 1


cdef uintptr_t _address(lib, str name) except 0:
    return ctypes.cast(getattr(lib, name), ctypes.c_void_p).value


def _load():
    """Resolve libcrypto; returns what is to be used from now on and its name."""
    global ctx_new, ctx_free, aes_256_gcm, init, update, final, ctrl
    import hashlib      # noqa: F401      loads libcrypto on most builds; dlopen by its name then finds that very one
    why = "no libcrypto.so.3 or libcrypto.so.1.1"
    for name in ("libcrypto.so.3", "libcrypto.so.1.1"):
        try:
            lib = ctypes.CDLL(name)
            aes_256_gcm = <cipher_t>_address(lib, "EVP_aes_256_gcm")
            ctx_free = <ctx_free_t>_address(lib, "EVP_CIPHER_CTX_free")
            init = <init_t>_address(lib, "EVP_CipherInit_ex")
            update = <update_t>_address(lib, "EVP_CipherUpdate")
            final = <final_t>_address(lib, "EVP_CipherFinal_ex")
            ctrl = <ctrl_t>_address(lib, "EVP_CIPHER_CTX_ctrl")
            ctx_new = <ctx_new_t>_address(lib, "EVP_CIPHER_CTX_new")
            _try_vector()
            return LibcryptoAead, f"libcrypto ({_version(lib)}), without the GIL"
        except OSError:
            continue
        except (AttributeError, MachineError) as e:
            why = f"{name}: {e}"
    ctx_new = NULL
    return PackageAead, f"the cryptography package, with the GIL ({why})"


def _version(lib):
    lib.OpenSSL_version.restype = ctypes.c_char_p
    return lib.OpenSSL_version(0).decode(errors="replace")


def _try_vector():
    """Test case 16: 60 bytes of plaintext and 20 of associated data, through the functions just found."""
    cdef bytes key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    cdef bytes nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    cdef bytes aad = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    cdef bytes plain = bytes.fromhex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
                                     "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39")
    cdef uint8_t out[76]
    cdef int got = 0
    cdef void* ctx = ctx_new()
    cdef bint ok = (ctx != NULL and init(ctx, aes_256_gcm(), NULL, key, nonce, 1) == 1
                    and update(ctx, NULL, &got, aad, 20) == 1 and update(ctx, out, &got, plain, 60) == 1
                    and final(ctx, out + 60, &got) == 1 and ctrl(ctx, CTRL_GET_TAG, TAG_BYTES, out + 60) == 1)
    if ctx != NULL:
        ctx_free(ctx)
    if not ok or out[:76] != bytes.fromhex(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838"
            "c5f61e6393ba7a0abcc9f662" "76fc6ece0f4e1768cddf8853bb2d551b"):
        raise MachineError("a known answer of AES-256-GCM is not reproduced")


make, IN_USE = _load()
