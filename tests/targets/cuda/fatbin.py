"""What a fat binary holds: a header, then for each image a header and the image.

The layout is that of nvcc 13 and of the library nvFatbin; NVIDIA does not document it. Numbers are little-endian:

    file    u32 magic, u16 version, u16 bytes of this header, u64 bytes that follow
    image   u16 kind, u16 version, u32 bytes of this header, u64 bytes of the image, 12 bytes, u32 architecture,
            8 bytes, u64 flags, ...
"""

import struct

_MAGIC = 0xBA55ED50
_KINDS = {1: "compute", 2: "sm"}  # PTX, cubin
_COMPRESSED = 0xA000  # flags: LZ4, Zstandard


def read_fatbin(content):
    """Images by name: the cubin of sm_80, the text of the PTX of compute_80."""
    magic, version, at, size = struct.unpack_from("<IHHQ", content)
    assert (magic, version, at + size) == (_MAGIC, 1, len(content))
    images = {}
    while at < len(content):
        kind, _, header, size, architecture, flags = struct.unpack_from("<HHIQ12xI8xQ", content, at)
        assert not flags & _COMPRESSED
        name, image = f"{_KINDS[kind]}_{architecture}", content[at + header : at + header + size]
        assert name not in images and len(image) == size
        images[name] = image.rstrip(b"\0") if kind == 1 else image
        at += header + size
    return images
