"""Pictures of pages for the documentation, written small."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
from playwright.sync_api import Page

#: Decodes a PNG into its pixels: width, height, and base64 of four bytes per pixel.
DECODE = """async (png) => {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = new Blob([context.getImageData(0, 0, image.width, image.height).data]);
  const reader = new FileReader();
  await new Promise((done) => { reader.onload = done; reader.readAsDataURL(pixels); });
  return [image.width, image.height, reader.result.split(",")[1]];
}"""
TRUE_COLOR = (8, 2, 0, 0, 0)  #: bits, RGB, and the only methods that PNG has


def take_picture(page: Page, file: Path) -> None:
    """A picture of the whole page, without any loss, in fewer bytes than Chromium writes."""
    blank = page.context.new_page()
    width, height, pixels = blank.evaluate(DECODE, base64.b64encode(page.screenshot(full_page=True)).decode())
    blank.close()
    colors = np.frombuffer(base64.b64decode(pixels), dtype=np.uint8).reshape(height, width, 4)[:, :, :3]
    # Areas of one colour repeat best unfiltered: each row is a zero, which says so, and its colours.
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 1:] = colors.reshape(height, -1)
    header = struct.pack(">II5B", width, height, *TRUE_COLOR)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
