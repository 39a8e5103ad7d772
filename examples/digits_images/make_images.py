"""Writes scikit-learn's handwritten digits as PNG files, with a table of them: python make_images.py FOLDER."""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(folder):
    """Writes FOLDER/images/0000.png ... and FOLDER/digits.csv with the columns id, image, label."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    # 17 shades, 0 to 16, become 0 to 255.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    with (folder / "digits.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "image", "label"])
        for number, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            path = images / f"{number:04d}.png"
            Image.fromarray(image).save(path)
            table.writerow([f"digit-{number:04d}", path, label])
    print(f"{len(pixels)} images, listed in {folder / 'digits.csv'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python make_images.py FOLDER")
    # Absolute, so that the paths in the table hold wherever the job is started.
    main(Path(sys.argv[1]).resolve())
