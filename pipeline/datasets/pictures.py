"""Parts of encoded pictures at a size asked for, decoding no more than they need.

[W, H]: a picture's size as it is stored; its EXIF orientation says how it is looked at. [h, w]: the size asked for.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

Bytes = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Others are not looked for: Pillow runs Ghostscript on what is PostScript, whatever its name says."""
MAX_PIXELS = 89_478_485
"""Of a picture, 256 MiB decoded. Pillow warns from here on, so that whether it warns or raises decides nothing."""
GAP = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 where the part is still so many times as large as what is asked for: Pillow's
own choice for thumbnails, hardly to be told from resizing the whole."""

_NO_TRANSPOSITION = 1
_MIRRORED = {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5, 7: 8, 8: 7}
"""EXIF orientation -> the one of the picture that is looked at in a mirror."""
_TURNED = {5, 6, 7, 8}
"""Orientations under which rows are columns."""
_FROM_RIGHT, _FROM_BOTTOM = {2, 3, 7, 8}, {3, 4, 6, 7}
"""Orientations under which the stored picture is counted from its right edge, and from its bottom."""
_ORIENTATION_TAG = 0x0112


def need_pillow(what: str) -> None:
    """Raise ConfigError where there is no Pillow, or one that was told to make pictures of files that are cut off."""
    try:
        import PIL.ImageFile
    except ImportError as error:
        raise ConfigError(f"{what} needs Pillow: pip install 'distillog[data]'") from error
    if PIL.ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            f"{what}: something here sets PIL.ImageFile.LOAD_TRUNCATED_IMAGES, under which a file that is cut off is a "
            "picture with a grey rest instead of a fault: leave it off"
        )


def cut_out(out: Bytes, raw: bytes, box: Box, flip: bool) -> None:
    """Write a part of a picture's middle square into `out` [C, h, w], C = 1 or 3; of an animation, its first frame.

    `box` is top, left, height, width as fractions of that square, upright as its EXIF orientation says; the part is
    mirrored left to right where `flip`. A pure function of all of it. Colours beneath transparency are taken as they
    are, of 16 bits the upper 8. Raises ValueError, or whatever a decoder raises, for what is no picture.
    """
    channels, height, width = out.shape
    with _opened(raw) as opened:
        orientation = _orientation(opened)
        if orientation in _TURNED:
            height, width = width, height
        part = stored_part(opened.size, orientation, box)
        if opened.format in ("JPEG", "MPO"):
            scale = draft_scale(part, (width, height))
            if opened.draft("L" if channels == 1 else None, (opened.width // scale, opened.height // scale)) is None:
                scale = 1
            part = (part[0] / scale, part[1] / scale, part[2] / scale, part[3] / scale)
        image = _resized(as_bytes(opened, channels), (width, height), part)
    seen = _MIRRORED[orientation] if flip else orientation
    if seen != _NO_TRANSPOSITION:
        image = image.transpose(_transpositions()[seen])
    out[:] = planes(image)


def stored_part(size: tuple[int, int], orientation: int, box: Box) -> Box:
    """Left, top, right, bottom in pixels of a stored picture [W, H]: where a part of its middle square lies."""
    top, left, tall, wide = box
    if orientation in _TURNED:
        top, left, tall, wide = left, top, wide, tall
    if orientation in _FROM_RIGHT:
        left = 1.0 - (left + wide)
    if orientation in _FROM_BOTTOM:
        top = 1.0 - (top + tall)
    side = min(size)
    x, y = (size[0] - side) / 2 + left * side, (size[1] - side) / 2 + top * side
    right, bottom = min(x + wide * side, float(size[0])), min(y + tall * side, float(size[1]))
    return max(x, 0.0), max(y, 0.0), right, bottom


def draft_scale(part: Box, size: tuple[int, int]) -> int:
    """1, 2, 4 or 8: by how much a JPEG is decoded smaller, of whose pixels `part` is asked for at `size` (w, h)."""
    least = min((part[2] - part[0]) / size[0], (part[3] - part[1]) / size[1])
    return next((scale for scale in (8, 4, 2) if least >= GAP * scale), 1)


def as_bytes(image: Image.Image, channels: int) -> Image.Image:
    """The picture in Pillow's mode "L", or in "RGB" where there are 3 channels and it has colours.

    Raises ValueError for numbers that say no range, and for colours that Pillow cannot convert.
    """
    from PIL import Image

    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow knows no way from it to grey
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # as Pillow reads colours of 16 bits
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits ({image.mode}), which say no range; give 8 or 16 bits")
    mode = "L" if channels == 1 or image.mode in ("1", "L", "LA") else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def planes(image: Image.Image) -> Bytes:
    """[1, h, w] of a picture in mode "L", [3, h, w] of one in "RGB"; a view of other memory."""
    if image.mode == "L":
        return np.frombuffer(image.tobytes(), np.uint8).reshape(1, image.height, image.width)
    # Line by line, each colour in a run: three times as fast to take apart as pixel by pixel.
    lines = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8)
    return lines.reshape(image.height, 3, image.width).transpose(1, 0, 2)


def array_of(value: object) -> npt.NDArray[Any]:
    """An array of anything; of a Pillow image [1, H, W] bytes, or [3, H, W] of one with colours, upright as EXIF says.

    Raises ValueError as `as_bytes`, or whatever its decoder does.
    """
    pillow = sys.modules.get("PIL.Image")
    if pillow is None or not isinstance(value, pillow.Image):
        return np.asarray(value)
    from PIL import ImageOps

    return planes(as_bytes(ImageOps.exif_transpose(value), 3))


def resampled(out: Bytes, image: Bytes, box: Box, flip: bool) -> None:
    """Write a part of `image` [C, H, W] into `out` [C, h, w]; `box` and `flip` as in `cut_out`, of the whole image."""
    from PIL import Image

    _, height, width = image.shape
    top, left, tall, wide = box
    size = (out.shape[2], out.shape[1])
    part = (left * width, top * height, min((left + wide) * width, width), min((top + tall) * height, height))
    for plane, source in zip(out, image, strict=True):
        seen = _resized(Image.fromarray(np.ascontiguousarray(source)), size, part)
        if flip:
            seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        plane[:] = np.asarray(seen)


def _resized(image: Image.Image, size: tuple[int, int], part: Box) -> Image.Image:
    """A part of a picture at `size` (w, h): a triangle filter as wide as a target pixel, so that nothing aliases.

    Pillow rounds to bytes between its two directions, and took rows first always, but from 13 on columns of tall
    pictures; where it does, this one lies on its side, so that bits do not depend on the version.
    """
    from PIL import Image

    if image.height - size[1] > max(0, 2 * (image.width - size[0])):
        lying = image.transpose(Image.Transpose.TRANSPOSE)
        seen = lying.resize(size[::-1], Image.Resampling.BILINEAR, (part[1], part[0], part[3], part[2]))
        return seen.transpose(Image.Transpose.TRANSPOSE)
    return image.resize(size, Image.Resampling.BILINEAR, part)


def _opened(raw: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    if not raw:
        raise ValueError("the file is empty")
    most = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    try:
        opened = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:  # whose text has an address of memory in it
        raise ValueError(f"no picture that can be read ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"more than {most:,} pixels") from None
    if opened.width * opened.height > most:
        raise ValueError(f"more than {most:,} pixels")
    return opened


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where it says nothing of sense."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken metadata break no picture
        return _NO_TRANSPOSITION
    return found if found in _MIRRORED else _NO_TRANSPOSITION


def _transpositions() -> dict[int, Image.Transpose]:
    """EXIF orientation -> how the stored picture becomes the one that is looked at."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
