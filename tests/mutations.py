"""Mutations that know the format of a file: what a broken disk, another program or a hostile hand makes of it."""

import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 256, 13000, 65535, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = (
    "", "\0", "x" * 300, "nan", "NaN", "-1", "1e400", "9" * 5000, "../../etc/passwd", "/", ".", "a|b", "\u202e",
    "true", "0x10",
    "1.5", "1e-320", "-0", "²", "ä", "a\u0308", "=1+1", "null", "[]", '"', "\n", ",", ";", " ", "\ufeff",
    "C:\\x",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2.5, 1e308, -1e308, 1e-320, 10**400, float("nan"), float("inf"), [], {}, [[]],
    [0, 0], [[0, 0], [1, 1]], {"a": {}}, *TEXTS,
)  # fmt: skip


def bytes_of(rng: Random, data: bytes) -> bytes:
    """Any bytes: changed, cut, doubled, moved."""
    raw = bytearray(data)
    at, other = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    kind = rng.randrange(8)
    if kind == 0:
        return bytes(raw[:at])
    if kind == 1:
        return bytes(raw[:at] + raw[other:])
    if kind == 2:
        return bytes(raw[:other] + raw[at:])
    if kind == 3:
        return bytes(raw) + rng.randbytes(rng.randrange(1, 64))
    if kind == 4:
        size = rng.choice((1, 2, 4))
        raw[at : at + size] = (rng.choice(NUMBERS) & (256**size - 1)).to_bytes(size, rng.choice(("little", "big")))
        return bytes(raw)
    if kind == 5:
        raw[at:other] = bytes(other - at)
        return bytes(raw)
    for _ in range(rng.randrange(1, 9)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


# --- pictures ---


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + b"\0\0\0\0"


def png(rng: Random, data: bytes) -> bytes:
    """Header fields, chunks that are added, dropped, doubled, moved, all with right checksums."""
    chunks = png_chunks(data)
    kind = rng.randrange(5)
    if kind == 0:
        header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        field = rng.randrange(7)
        header[field] = rng.choice(NUMBERS) if field < 2 else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *header))
    elif kind == 1:
        extra = rng.choice(
            [
                (b"eXIf", exif(rng.choice((1, 2, 3, 6, 8, 9)))),
                (b"tRNS", rng.choice((b"\0\0", b"\0\0\0\0\0\0", b"\xff" * 6, bytes(range(256))))),
                (b"PLTE", rng.choice((b"\0\0\0\xff\xff\xff", b"\xff\xff\xff\0\0\0", b"\0" * 768))),
                (b"gAMA", struct.pack(">I", rng.choice(NUMBERS))),
                (b"sBIT", rng.choice((b"\x01", b"\x03\x03\x03", b"\x0c"))),
                (b"acTL", struct.pack(">II", rng.choice((1, 2, 1000)), 0)),
                (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))),
                (b"iCCP", b"a\0\0" + zlib.compress(bytes(1000))),
                (b"pHYs", struct.pack(">IIB", rng.choice(NUMBERS), rng.choice(NUMBERS), 1)),
            ]
        )
        chunks.insert(rng.randrange(1, len(chunks)), extra)
    elif kind == 2:
        del chunks[rng.randrange(len(chunks))]
    elif kind == 3:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    else:
        index = rng.randrange(len(chunks))
        name, content = chunks[index]
        if name == b"IDAT":  # rows that are other than the header says
            content = zlib.compress(bytes_of(rng, zlib.decompressobj().decompress(content) or b"\0"))
        chunks[index] = (name, content if name == b"IDAT" else bytes_of(rng, content) if content else b"x")
    return png_file(chunks)


def tiff(rng: Random, data: bytes) -> bytes:
    """An entry of a directory: its tag, type, count or value."""
    raw = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    try:
        at = struct.unpack_from(f"{order}I", raw, 4)[0]
        count = struct.unpack_from(f"{order}H", raw, at)[0]
        entry = at + 2 + 12 * rng.randrange(count)
        field = rng.randrange(6)
        if field == 0:
            tag = rng.choice((256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 282, 284, 296, 317, 338, 339, 530))
            struct.pack_into(f"{order}H", raw, entry, tag)
        elif field == 1:
            struct.pack_into(f"{order}H", raw, entry + 2, rng.randrange(20))
        elif field == 2:
            struct.pack_into(f"{order}I", raw, entry + 4, rng.choice(NUMBERS))
        elif field == 3:
            struct.pack_into(f"{order}H", raw, at, rng.choice((0, 1, count - 1, count + 1, 65535)))
        else:
            kind = struct.unpack_from(f"{order}H", raw, entry + 2)[0]
            if kind == 3:
                struct.pack_into(f"{order}H", raw, entry + 8, rng.choice(NUMBERS) & 65535)
            else:
                struct.pack_into(f"{order}I", raw, entry + 8, rng.choice(NUMBERS))
    except struct.error:
        return bytes_of(rng, data)
    return bytes(raw)


def jpeg(rng: Random, data: bytes) -> bytes:
    """A segment of a JPEG; sizes, orientation, or the segment as a whole."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at : at + size])
        at += size
    parts.append(data[at:])
    index, kind = rng.randrange(1, len(parts)), rng.randrange(4)
    if kind == 0:
        body = b"Exif\0\0" + exif(rng.randrange(10))
        parts.insert(1, b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    elif kind == 1:
        del parts[index]
    elif kind == 2:
        parts.insert(rng.randrange(1, len(parts)), parts[index])
    else:
        frame = next((i for i, part in enumerate(parts) if part[:2] in (b"\xff\xc0", b"\xff\xc2")), index)
        changed = bytearray(parts[frame])
        if len(changed) > 10:
            place = rng.choice((4, 5, 7, 9))  # bits, height, width, components
            value = rng.choice(NUMBERS) & (65535 if place in (5, 7) else 255)
            changed[place : place + (2 if place in (5, 7) else 1)] = value.to_bytes(2 if place in (5, 7) else 1, "big")
        parts[frame] = bytes(changed)
    return b"".join(parts)


def bmp(rng: Random, data: bytes) -> bytes:
    """A field of the header."""
    raw = bytearray(data)
    place = rng.choice((10, 14, 18, 22, 26, 28, 30, 34, 46, 50))
    struct.pack_into("<i", raw, place, rng.choice((*(n for n in NUMBERS if n < 2**31), -1, -64, -(2**31))))
    return bytes(raw)


def npy(rng: Random, data: bytes) -> bytes:
    """Text of the header: type, order, shape."""
    before = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + before].decode("latin1").strip()
    old, new = rng.choice(
        [
            (
                "'<f4'",
                rng.choice(["'>f4'", "'<f2'", "'<f8'", "'|b1'", "'<u2'", "'<i4'", "'|O'", "'<c8'", "3"]),
            ),
            ("False", rng.choice(["True", "1", "None"])),
            ("(64", rng.choice(["(63", "(65", "(0", "(-64", "(6400000000", "(64.5", "('64'", "(1, 64"])),
            ("{", rng.choice(["", "[", "{" * 1000, "{'a': 1,"])),
            ("}", rng.choice(["", ", 'a': 1}", "}" * 9, "\0}"])),
        ]
    )
    header = text.replace(old, new, 1).encode("latin1", "replace")
    size = len(header) + 1 if rng.random() < 0.9 else rng.choice(NUMBERS) & 65535
    return (
        data[:8]
        + (size & 65535).to_bytes(2, "little")
        + header
        + b"\n"
        + data[10 + int.from_bytes(data[8:10], "little") :]
    )


# --- texts ---


def tree(rng: Random, value: Any) -> Any:
    """A mapping or list with one place changed."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        changed: Any = dict(value) if isinstance(value, dict) else list(value)
        kind = rng.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1 and isinstance(changed, dict):
            changed[rng.choice(TEXTS)] = changed.pop(key)
        elif kind == 2 and isinstance(changed, list):
            changed += [changed[key]] * rng.choice((1, 100))
        elif kind == 3 and isinstance(changed, list):
            rng.shuffle(changed)
        else:
            changed[key] = tree(rng, value[key])
        return changed
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((-value, value * 1e6, value + rng.random(), value / 3, int(value)))
    return rng.choice(VALUES)


def as_json(rng: Random, data: bytes) -> bytes:
    """A place of the tree, or brackets without end."""
    if rng.random() < 0.03:
        return rng.choice((b"[" * 200_000, b'{"a":' * 200_000, data.replace(b"{", b"{" * 9, 1)))
    return json.dumps(tree(rng, json.loads(data)), allow_nan=True).encode()


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11)
)


def as_yaml(rng: Random, data: bytes) -> bytes:
    """A place of the tree, a line, aliases that multiply, brackets, tags."""
    lines = data.decode().splitlines()
    index = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice((ALIASES.encode() + data, data + ALIASES.encode(), b"a: " + b"[" * 50_000, b"a: &a [*a]\n"))
    if kind == 1:
        tags = ("!!int x", "!!float [1]", "2023-02-30", "!!timestamp 5", "!!python/name:os.system ", "!!binary %", "*b")
        lines[index] = lines[index].partition(":")[0] + ": " + rng.choice(tags)
    elif kind == 2:
        lines.insert(index, rng.choice(lines))
    elif kind == 3:
        lines[index] = lines[index].partition(":")[0] + ": " + rng.choice(TEXTS)
    elif kind == 4:
        lines[index] = rng.choice((" ", "\t", "- ", "? ", "--- ", "# ")) + lines[index]
    else:
        del lines[index]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def as_csv(rng: Random, data: bytes) -> bytes:
    """A cell, a row, a column, the separator."""
    rows = [line.split(",") for line in data.decode().splitlines()]
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    kind = rng.randrange(7)
    if kind < 3:
        row = row if kind else 0
        rows[row][column] = rng.choice((*TEXTS, *rng.choice(rows)))
    elif kind == 3:
        rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
    elif kind == 4:
        rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    elif kind == 5:
        return (rng.choice((";", "\t", ", ")).join(rows[0]) + "\n").encode() + data.partition(b"\n")[2]
    else:
        encoding = rng.choice(("utf-16", "latin1", "utf-8-sig", "utf-32"))
        return "\n".join(map(",".join, rows)).replace("benign", "bénin").encode(encoding)
    return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")


def as_xml(rng: Random, data: bytes) -> bytes:
    """An attribute, an element, entities that multiply."""
    text = data.decode()
    kind = rng.randrange(5)
    if kind == 0:
        entities = '<!ENTITY a0 "xxxxxxxxxx">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 9}">' for i in range(1, 10))
        return f"<!DOCTYPE x [{entities}]>{text.partition('?>')[2]}".replace('"0"', '"&a9;"', 1).encode()
    pieces = text.split('"')
    index = rng.randrange(1, len(pieces) - 1) | 1
    if kind == 1:
        pieces[min(index, len(pieces) - 2)] = rng.choice(TEXTS).replace('"', "")
    elif kind == 2:
        pieces[min(index, len(pieces) - 2)] = str(rng.choice(NUMBERS) * rng.choice((1, -1, 0.37, 1e30)))
    elif kind == 3:
        lines = text.splitlines()
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        return "\n".join(lines).encode()
    else:
        lines = text.splitlines()
        del lines[rng.randrange(len(lines))]
        return "\n".join(lines).encode()
    return '"'.join(pieces).encode("utf-8", "surrogatepass")


def tensors(rng: Random, data: bytes) -> bytes:
    """The header of safetensors: names, types, shapes, offsets, its own size."""
    size = int.from_bytes(data[:8], "little")
    header = as_json(rng, data[8 : 8 + size])
    size = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS)
    return size.to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :]


Mutation = Callable[[Random, bytes], bytes]
