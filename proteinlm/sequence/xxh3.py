"""XXH3, compiled: 64-bit hashes with a seed and 128-bit hashes, callable from other compiled loops.

The library ``xxhash`` computes the same and stays what is used for single texts. For millions of
sequences its 0.2 microseconds of Python each cost more than the hash, and the interpreter lock is
held all the while; here nothing is allocated and no lock is needed.

Functions that take an ``address`` read unaligned little-endian words from memory that the caller
keeps alive.

Source: Yann Collet, xxHash, the specification of XXH3 (github.com/Cyan4973/xxHash).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from proteinlm.sequence.addresses import address_of, load_at, read_8, read_32, read_64

if TYPE_CHECKING:
    from numpy.typing import NDArray

_U = np.uint64
SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
        "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    dtype=np.uint8,
)
_SECRET_SIZE = 192
_STRIPE = 64
HASH_BLOCK = 1024  # bytes after which the accumulators are scrambled: 16 stripes, 8 bytes of the secret each

_PRIME32_1 = _U(0x9E3779B1)
_PRIME32_2 = _U(0x85EBCA77)
_PRIME32_3 = _U(0xC2B2AE3D)
_PRIME64_1 = _U(0x9E3779B185EBCA87)
_PRIME64_2 = _U(0xC2B2AE3D27D4EB4F)
_PRIME64_3 = _U(0x165667B19E3779F9)
_PRIME64_4 = _U(0x85EBCA77C2B2AE63)
_PRIME64_5 = _U(0x27D4EB2F165667C5)
_PRIME_MX1 = _U(0x165667919E3779F9)
_PRIME_MX2 = _U(0x9FB21C651E98DF25)
_LOW_32 = _U(0xFFFFFFFF)
FIRST_ACCUMULATORS = (
    *(_PRIME32_3, _PRIME64_1, _PRIME64_2, _PRIME64_3),
    *(_PRIME64_4, _PRIME32_2, _PRIME64_5, _PRIME32_1),
)

_I64 = ir.IntType(64)
_LANES = ir.VectorType(_I64, 8)
_ACCUMULATORS = types.UniTuple(types.uint64, 8)


@intrinsic  # type: ignore[untyped-decorator]
def swap64(typing_context: Any, word: Any) -> Any:
    """Return a word with its bytes in the other order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _product(typing_context: Any, left: Any, right: Any) -> Any:
    """Return the low and the high word of the product of two words."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*[builder.zext(word, wide) for word in arguments])
        low = builder.trunc(product, _I64)
        high = builder.trunc(builder.lshr(product, wide(64)), _I64)
        return cgutils.pack_array(builder, [low, high])

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _seeded_secret(typing_context: Any, seed: Any) -> Any:
    """Return the address of the secret of a seed, on the stack of the caller."""
    secret = SECRET.view("<u8").tolist()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = cgutils.alloca_once(builder, ir.ArrayType(_I64, len(secret)))
        zero = ir.IntType(32)(0)
        for number, word in enumerate(secret):
            change = builder.sub if number % 2 else builder.add
            target = builder.gep(place, [zero, ir.IntType(32)(number)])
            builder.store(change(_I64(word), arguments[0]), target)
        return builder.ptrtoint(place, _I64)

    return types.uint64(types.uint64), generate


def _as_lanes(builder: Any, accumulators: Any) -> Any:
    lanes = ir.Constant(_LANES, ir.Undefined)
    for number, word in enumerate(cgutils.unpack_tuple(builder, accumulators, 8)):
        lanes = builder.insert_element(lanes, word, ir.IntType(32)(number))
    return lanes


def _as_tuple(builder: Any, lanes: Any) -> Any:
    return cgutils.pack_array(builder, [builder.extract_element(lanes, ir.IntType(32)(n)) for n in range(8)])


def _every_lane(value: int) -> Any:
    return ir.Constant(_LANES, [value] * 8)


def _accumulated(builder: Any, lanes: Any, text: Any, secret: Any) -> Any:
    """Return the accumulators after one stripe; the compiler finds the instructions of the machine."""
    words = load_at(builder, text, _LANES)
    keys = builder.xor(words, load_at(builder, secret, _LANES))
    low = builder.and_(keys, _every_lane(0xFFFFFFFF))
    products = builder.mul(low, builder.lshr(keys, _every_lane(32)))
    neighbours = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])
    exchanged = builder.shuffle_vector(words, ir.Constant(_LANES, ir.Undefined), neighbours)
    return builder.add(lanes, builder.add(products, exchanged))


@intrinsic  # type: ignore[untyped-decorator]
def _accumulate(typing_context: Any, text: Any, secret: Any, num_stripes: Any, accumulators: Any) -> Any:
    """Return the accumulators after the stripes from ``text`` on; the secret moves on by 8 bytes each."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        text, secret, num_stripes, accumulators = arguments
        before = builder.block
        loop, after = builder.append_basic_block("stripe"), builder.append_basic_block("after")
        start = _as_lanes(builder, accumulators)
        builder.cbranch(builder.icmp_unsigned(">", num_stripes, _I64(0)), loop, after)
        with builder.goto_block(loop):
            number, lanes = builder.phi(_I64), builder.phi(_LANES)
            key = builder.add(secret, builder.mul(number, _I64(8)))
            added = _accumulated(builder, lanes, builder.add(text, builder.mul(number, _I64(_STRIPE))), key)
            following = builder.add(number, _I64(1))
            number.add_incoming(_I64(0), before)
            number.add_incoming(following, loop)
            lanes.add_incoming(start, before)
            lanes.add_incoming(added, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, num_stripes), loop, after)
        builder.position_at_end(after)
        result = builder.phi(_LANES)
        result.add_incoming(start, before)
        result.add_incoming(added, loop)
        return _as_tuple(builder, result)

    return _ACCUMULATORS(types.uint64, types.uint64, types.uint64, _ACCUMULATORS), generate


@intrinsic  # type: ignore[untyped-decorator]
def _scramble(typing_context: Any, secret: Any, accumulators: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = _as_lanes(builder, arguments[1])
        lanes = builder.xor(lanes, builder.lshr(lanes, _every_lane(47)))
        lanes = builder.xor(lanes, load_at(builder, arguments[0], _LANES))
        return _as_tuple(builder, builder.mul(lanes, _every_lane(int(_PRIME32_1))))

    return _ACCUMULATORS(types.uint64, _ACCUMULATORS), generate


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _folded(left: Any, right: Any) -> Any:
    low, high = _product(left, right)
    return low ^ high


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _avalanche(word: Any) -> Any:
    word = (word ^ (word >> _U(37))) * _PRIME_MX1
    return word ^ (word >> _U(32))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _strong_avalanche(word: Any) -> Any:
    word = (word ^ (word >> _U(33))) * _PRIME64_2
    word = (word ^ (word >> _U(29))) * _PRIME64_3
    return word ^ (word >> _U(32))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _rotated(word: Any, bits: Any) -> Any:
    return (word << bits) | (word >> (_U(64) - bits))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _mixed(text: Any, secret: Any, seed: Any) -> Any:
    left = read_64(text) ^ (read_64(secret) + seed)
    right = read_64(text + _U(8)) ^ (read_64(secret + _U(8)) - seed)
    return _folded(left, right)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _first_middle_last(text: Any, size: Any) -> Any:
    first, middle, last = read_8(text), read_8(text + (size >> _U(1))), read_8(text + size - _U(1))
    return (first << _U(16)) | (middle << _U(24)) | last | (size << _U(8))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _merged(accumulators: Any, secret: Any, start: Any) -> Any:
    a, b, c, d, e, f, g, h = accumulators
    result = start + _folded(a ^ read_64(secret), b ^ read_64(secret + _U(8)))
    result += _folded(c ^ read_64(secret + _U(16)), d ^ read_64(secret + _U(24)))
    result += _folded(e ^ read_64(secret + _U(32)), f ^ read_64(secret + _U(40)))
    result += _folded(g ^ read_64(secret + _U(48)), h ^ read_64(secret + _U(56)))
    return _avalanche(result)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def accumulate_blocks(text: Any, num_blocks: Any, secret: Any, found: Any) -> Any:
    """Return the accumulators ``found`` after so many blocks; at least one more byte must follow."""
    for number in range(num_blocks):
        found = _accumulate(text + _U(number) * _U(HASH_BLOCK), secret, _U(HASH_BLOCK // _STRIPE), found)
        found = _scramble(secret + _U(_SECRET_SIZE - _STRIPE), found)
    return found


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def accumulate_end(text: Any, size: Any, secret: Any, found: Any) -> Any:
    """Return the accumulators after the last bytes, 1 to 1,024; of fewer than 64 those before are read again."""
    found = _accumulate(text, secret, (size - _U(1)) // _U(_STRIPE), found)
    return _accumulate(text + size - _U(_STRIPE), secret + _U(_SECRET_SIZE - _STRIPE - 7), _U(1), found)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _accumulators(text: Any, size: Any, secret: Any) -> Any:
    """Return the accumulators of a text of more than 240 bytes."""
    num_blocks = (size - _U(1)) // _U(HASH_BLOCK)
    found = accumulate_blocks(text, num_blocks, secret, FIRST_ACCUMULATORS)
    before = num_blocks * _U(HASH_BLOCK)
    return accumulate_end(text + before, size - before, secret, found)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def ending_64(found: Any, size: Any, secret: Any) -> Any:
    """Return the 64-bit hash for the accumulators of a text of more than 240 bytes."""
    return _merged(found, secret + _U(11), size * _PRIME64_1)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def ending_128(found: Any, size: Any, secret: Any) -> Any:
    """Return the halves of the 128-bit hash for the accumulators of a text of more than 240 bytes."""
    high = _merged(found, secret + _U(_SECRET_SIZE - _STRIPE - 11), ~(size * _PRIME64_2))
    return ending_64(found, size, secret), high


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _short_64(text: Any, size: Any, secret: Any, seed: Any) -> Any:
    """Return the hash of at most 16 bytes."""
    if size > _U(8):
        low = read_64(text) ^ ((read_64(secret + _U(24)) ^ read_64(secret + _U(32))) + seed)
        high = read_64(text + size - _U(8)) ^ ((read_64(secret + _U(40)) ^ read_64(secret + _U(48))) - seed)
        return _avalanche(size + swap64(low) + high + _folded(low, high))
    if size >= _U(4):
        seed ^= swap64(seed & _LOW_32) & ~_LOW_32
        word = read_32(text + size - _U(4)) + (read_32(text) << _U(32))
        word ^= (read_64(secret + _U(8)) ^ read_64(secret + _U(16))) - seed
        word ^= _rotated(word, _U(49)) ^ _rotated(word, _U(24))
        word *= _PRIME_MX2
        word = (word ^ ((word >> _U(35)) + size)) * _PRIME_MX2
        return word ^ (word >> _U(28))
    if size:
        flips = (read_32(secret) ^ read_32(secret + _U(4))) + seed
        return _strong_avalanche(_first_middle_last(text, size) ^ flips)
    return _strong_avalanche(seed ^ read_64(secret + _U(56)) ^ read_64(secret + _U(64)))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _middle_64(text: Any, size: Any, secret: Any, seed: Any) -> Any:
    """Return the hash of 17 to 240 bytes."""
    total = size * _PRIME64_1
    last = text + size - _U(16)
    if size <= _U(128):
        for number in range((size - _U(1)) // _U(32) + _U(1)):
            step = _U(number) * _U(16)
            total += _mixed(text + step, secret + _U(2) * step, seed)
            total += _mixed(last - step, secret + _U(2) * step + _U(16), seed)
        return _avalanche(total)
    for number in range(8):
        total += _mixed(text + _U(16 * number), secret + _U(16 * number), seed)
    total = _avalanche(total)
    for number in range(8, size // _U(16)):
        total += _mixed(text + _U(16 * number), secret + _U(16 * (number - 8) + 3), seed)
    return _avalanche(total + _mixed(last, secret + _U(136 - 17), seed))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def xxh3_64(text: Any, start: Any, end: Any, seed: Any) -> Any:
    """Return the 64-bit hash, a uint64, of bytes ``start`` to ``end`` behind an address; ``seed`` is a uint64."""
    text, size = text + _U(start), _U(end - start)
    secret = address_of(SECRET)
    if size <= _U(16):
        return _short_64(text, size, secret, seed)
    if size <= _U(240):
        return _middle_64(text, size, secret, seed)
    if seed:
        secret = _seeded_secret(seed)
    return ending_64(_accumulators(text, size, secret), size, secret)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _short_128(text: Any, size: Any, secret: Any) -> Any:
    """Return the halves of the hash of at most 16 bytes."""
    if size > _U(8):
        first, last = read_64(text), read_64(text + size - _U(8))
        flips = read_64(secret + _U(32)) ^ read_64(secret + _U(40))
        low, high = _product(first ^ last ^ flips, _PRIME64_1)
        low += (size - _U(1)) << _U(54)
        last ^= read_64(secret + _U(48)) ^ read_64(secret + _U(56))
        high += last + (last & _LOW_32) * (_PRIME32_2 - _U(1))
        low ^= swap64(high)
        low, carried = _product(low, _PRIME64_2)
        return _avalanche(low), _avalanche(carried + high * _PRIME64_2)
    if size >= _U(4):
        word = read_32(text) + (read_32(text + size - _U(4)) << _U(32))
        word ^= read_64(secret + _U(16)) ^ read_64(secret + _U(24))
        low, high = _product(word, _PRIME64_1 + (size << _U(2)))
        high += low << _U(1)
        low ^= high >> _U(3)
        low = (low ^ (low >> _U(35))) * _PRIME_MX2
        return low ^ (low >> _U(28)), _avalanche(high)
    if size:
        word = _first_middle_last(text, size)
        swapped = swap64(word) >> _U(32)
        turned = ((swapped << _U(13)) | (swapped >> _U(19))) & _LOW_32
        low = word ^ read_32(secret) ^ read_32(secret + _U(4))
        high = turned ^ read_32(secret + _U(8)) ^ read_32(secret + _U(12))
        return _strong_avalanche(low), _strong_avalanche(high)
    low = read_64(secret + _U(64)) ^ read_64(secret + _U(72))
    high = read_64(secret + _U(80)) ^ read_64(secret + _U(88))
    return _strong_avalanche(low), _strong_avalanche(high)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _mixed_pair(low: Any, high: Any, first: Any, second: Any, secret: Any, seed: Any) -> Any:
    low += _mixed(first, secret, seed)
    low ^= read_64(second) + read_64(second + _U(8))
    high += _mixed(second, secret + _U(16), seed)
    high ^= read_64(first) + read_64(first + _U(8))
    return low, high


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _middle_128(text: Any, size: Any, secret: Any) -> Any:
    """Return the halves of the hash of 17 to 240 bytes."""
    low, high, none = size * _PRIME64_1, _U(0), _U(0)
    last = text + size - _U(16)
    if size <= _U(128):
        for number in range((size - _U(1)) // _U(32), -1, -1):
            step = _U(number) * _U(16)
            low, high = _mixed_pair(low, high, text + step, last - step, secret + _U(2) * step, none)
    else:
        for number in range(4):
            here = text + _U(32 * number)
            low, high = _mixed_pair(low, high, here, here + _U(16), secret + _U(32 * number), none)
        low, high = _avalanche(low), _avalanche(high)
        for number in range(4, size // _U(32)):
            here = text + _U(32 * number)
            low, high = _mixed_pair(low, high, here, here + _U(16), secret + _U(32 * (number - 4) + 3), none)
        low, high = _mixed_pair(low, high, last, last - _U(16), secret + _U(136 - 17 - 16), none)
    joined = low * _PRIME64_1 + high * _PRIME64_4 + size * _PRIME64_2
    return _avalanche(low + high), _U(0) - _avalanche(joined)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def xxh3_128(text: Any, start: Any, end: Any) -> Any:
    """Return the low and the high half, uint64, of the 128-bit hash of bytes ``start`` to ``end`` behind an address."""
    text, size = text + _U(start), _U(end - start)
    secret = address_of(SECRET)
    if size <= _U(16):
        return _short_128(text, size, secret)
    if size <= _U(240):
        return _middle_128(text, size, secret)
    return ending_128(_accumulators(text, size, secret), size, secret)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _digests(tokens: Any, offsets: Any, found: Any) -> None:
    for number in range(len(offsets) - 1):
        found[number, 0], found[number, 1] = xxh3_128(address_of(tokens), offsets[number], offsets[number + 1])


def digests(tokens: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the 128-bit hashes, low and high half, uint64 (N, 2), of ``tokens[offsets[i]:offsets[i + 1]]``."""
    found = np.empty((len(offsets) - 1, 2), dtype=np.uint64)
    _digests(np.ascontiguousarray(tokens), offsets, found)
    return found
