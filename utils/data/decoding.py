"""Image files as RGB of 8 bits, whatever numbers they hold.

Formats of 8 bits are converted as by `torchvision.datasets.ImageFolder`. Transparency is dropped,
palettes are looked up, and CMYK, YCbCr, HSV and CIELAB become RGB. The first of several frames is
taken. A camera's note of its orientation (EXIF) is not applied.

Other grey is scaled; Pillow would cut it at 255:

- 16 bits (`I;16`, and `I` of PNG and PGM): the upper 8 bits, as Pillow does with colours of 16
  bits. Of a TIFF of 12 bits, the upper 8 of these.
- 32-bit integers and floats do not record their range. The largest value of the file decides:
  floats up to 1 lie in 0 … 1, values up to 255 are levels of 8 bits, values up to 65535 of 16.
  One range for all files would turn most images black or white. A range for each file errs only
  where the brightest pixel has less than 1/255 of the range: such an image is black in either.
  Other values, and NaN, are refused.
"""

import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.data.datasets import printable
from utils.errors import InputError

# TIFF 6.0: tags BitsPerSample and PhotometricInterpretation, and the latter's value WhiteIsZero
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def open_rgb(path: Path) -> Image.Image:
    """Decode a file completely, as RGB.

    Raises:
        InputError: it is missing, truncated or no image, or holds values that cannot be scaled; the
            message has its path.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is a pipe, a device or a folder")
        with path.open("rb") as file, Image.open(file) as image:
            return to_rgb(image)
    except Exception as error:  # decoders raise nearly anything on broken bytes
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            reason = "unknown format"
        raise InputError(
            f"{printable(path)} cannot be read as an image ({reason}); replace or remove it"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image of any mode.

    Raises:
        ValueError: its values cannot be scaled to 8 bits.
    """
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey_levels(image)).convert("RGB")
    if image.mode == "La":  # grey, premultiplied by alpha: Pillow converts it to LA alone
        image = image.convert("LA")
    return image.convert("RGB")


def _grey_levels(image: Image.Image) -> np.ndarray:
    """Scale grey of more than 8 bits to uint8 (height, width), as the module describes."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        bits = (tags.get(_TIFF_BITS) or (16,))[0]
        # The upper 8 bits of 16, or of a TIFF's 12
        levels = values >> (bits - 8)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits by definition
        levels = values >> 8
    else:
        levels = _of_unknown_range(values)
    levels = levels.astype(np.uint8)
    return 255 - levels if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO else levels


def _of_unknown_range(values: np.ndarray) -> np.ndarray:
    """Scale integers or floats by the range that their largest value implies.

    Values up to half a level beyond a range count as rounding.

    Raises:
        ValueError: they are not finite, or lie outside of all ranges.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it has values that are no numbers")
    if values.dtype.kind == "f" and high < 1 + 0.5 / 255:
        scale, top = 255.0, 1
    elif high < 255.5:
        scale, top = 1.0, 255
    else:
        scale, top = 1 / 256, 65535
    if low * scale <= -0.5 or high >= 65536:
        raise ValueError(
            f"its values are {low:g} … {high:g} and not in 0 … 1, 0 … 255 or 0 … 65535"
        )
    # Of 16 bits the upper 8, as of the other formats of 16 bits: cut, do not round.
    levels = np.rint(values * scale) if top < 65535 else np.floor(values * scale)
    return levels.clip(0, 255)
