"""Files that a stranger might send: damaged, of the wrong kind, larger inside than outside, or pointing elsewhere."""

from __future__ import annotations

import io
import random
import struct
import wave
import zipfile
import zlib
from fractions import Fraction

import av
import numpy as np
from conftest import MEDIA
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"


def hostile_files() -> dict[str, tuple[str, bytes]]:
    """Field and content by name; each must be refused."""
    images = {f"image {name}": ("image", data) for name, data in _pictures().items()}
    sounds = {f"audio {name}": ("audio", data) for name, data in _sounds().items()}
    poses = {f"pose {name}": ("pose_video", data) for name, data in _films().items()}
    return images | sounds | poses


def _anything() -> dict[str, bytes]:
    """Wrong in every field."""
    return {
        "empty": b"",
        "one byte": b"\0",
        "zeros": bytes(100_000),
        "random": random.Random(7).randbytes(100_000),
        "text": b"just words\n" * 100,
        "html": b"<html><body><script>alert(1)</script></body></html>",
        "json": b'{"image": "/etc/passwd"}',
        "program": b"\x7fELF\x02\x01\x01" + bytes(500),
        "zip": _zip_bomb(),
        "playlist of files": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXTINF:10,\nhttp://127.0.0.1/x.ts\n#EXT-X-ENDLIST\n",
        "list for concat": b"ffconcat version 1.0\nfile /etc/passwd\nfile '../../../etc/shadow'\n",
    }


def _pictures() -> dict[str, bytes]:
    png, jpg = _saved("PNG"), _saved("JPEG")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><image href="file:///etc/passwd"/></svg>'
    return _anything() | {
        "cut png": png[: len(png) // 2],
        "png without pixels": png[:40],
        "cut webp": _saved("WEBP")[:60],
        "cut gif": _saved("GIF")[:30],
        "jpg header alone": jpg[:30],
        "png of a wrong checksum": png[:29] + b"\0\0\0\0" + png[33:],
        "png bomb of 400 million pixels": _png_bomb(20_000, 20_000),
        "png bomb of 900 million pixels": _png_bomb(30_000, 30_000),
        "png of 2^31 a side": _png_header(2**31 - 1, 2**31 - 1) + _chunk(b"IEND", b""),
        "gif of 65535 a side": b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x00;",
        "bmp of a huge side": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        "tiff that points to itself": b"II*\0\x08\0\0\0" + struct.pack("<H", 0) + struct.pack("<I", 8),
        "one pixel": _saved("PNG", (1, 1)),
        "too thin": _saved("PNG", (4000, 2)),
        "svg": svg,
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) (r) file\n",
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "sound": (MEDIA / "talk_0s3.wav").read_bytes(),
        "film": (MEDIA / "pose_small.mp4").read_bytes(),
    }


def _sounds() -> dict[str, bytes]:
    mp3 = (MEDIA / "sing_clip.mp3").read_bytes()
    return _anything() | {
        "picture": _saved("PNG"),
        "film without sound": _film(64, 64, 4),
        "wav without samples": _wav(0),
        "wav of 10 ms": _wav(160),
        "wav header alone": _wav(1600)[:30],
        "wav of nan": _float_wav(np.full(16000, np.nan, np.float32)),
        "flac of two hours": _long_flac(),
        "mp3 of one damaged frame": mp3[:20] + bytes(200),
        "midi": b"MThd\0\0\0\x06\0\x01\0\x01\0\x60",
        "session description": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        "dash": b'<?xml version="1.0"?><MPD type="static"><BaseURL>file:///etc/</BaseURL></MPD>',
    }


def _films() -> dict[str, bytes]:
    film = (MEDIA / "pose_small.mp4").read_bytes()
    return _anything() | {
        "sound": (MEDIA / "talk_0s3.wav").read_bytes(),
        "cut before its index": _film(64, 64, 8)[:400],
        "larger than allowed": _film(1920, 1080, 1),
        "of a damaged box": film[:8] + b"\xff" * 64 + film[72:],
    }


def _saved(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_header(height: int, width: int) -> bytes:
    return _PNG + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))


def _png_bomb(height: int, width: int) -> bytes:
    packer = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return _png_header(height, width) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escape.png", bytes(50_000_000))
    return file.getvalue()


def _wav(num_samples: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16000)
        writer.writeframes(bytes(2 * num_samples))
    return file.getvalue()


def _float_wav(samples: np.ndarray) -> bytes:
    data = samples.tobytes()
    form = struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _long_flac() -> bytes:
    """Silence packs well: two hours in less than 200 kB."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=8000, layout="mono")
        for _ in range(7200):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _film(height: int, width: int, num_frames: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(16), options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for _ in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
