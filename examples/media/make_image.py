"""Make a picture as a camera would have taken it: a sky that changes its colour, hills, and the noise of a sensor.

python -m examples.media.make_image photo.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

SIZE = (3000, 2000)
SKY = (70, 120, 200)
"""At the top: red, green, blue."""
NOISE = 12
"""Standard deviation, of 255: what makes a JPEG of this size 1 to 2 MB."""


def make_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write a picture; the ending of its name says in what format."""
    width, height = size
    gradient = Image.linear_gradient("L")  # from 0 at the top to 255
    bands = [gradient.point([min(255, top + down // 3) for down in range(256)]) for top in SKY]
    image = Image.merge("RGB", bands).resize(size)
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.7, height * 0.1, width * 0.8, height * 0.1 + width * 0.1), fill=(255, 240, 200))
    for hill in range(5):
        top, left = height * (0.55 + 0.08 * hill), width * (0.23 * hill - 0.2)
        draw.ellipse((left, top, left + width * 0.9, top + height), fill=(40, 120 - 18 * hill, 50))
    noise = Image.effect_noise(size, NOISE).convert("RGB")
    ImageChops.add(image, noise, offset=-128).save(path, quality=85)
    return path


if __name__ == "__main__":
    made = make_image(Path(sys.argv[1] if len(sys.argv) > 1 else "photo.jpg"))
    print(f"{made}: {made.stat().st_size} bytes")
