from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from danlu.png import grid, png_bytes


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1)])
def test_another_library_reads_what_was_written(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(png_bytes(picture))) as image:
        image.load()
        assert np.array_equal(np.asarray(image), picture)


def test_images_lie_side_by_side() -> None:
    images = np.stack([np.full((1, 2, 3), value) for value in (0.0, 0.5, 1.0)])
    whole = grid(images, 2)
    assert whole.shape == (5, 7)
    assert (whole[:2, :3] == 0).all()
    assert (whole[:2, 4:] == 128).all()
    assert (whole[3:, :3] == 255).all()
    assert (whole[3:, 4:] == whole[2, 0]).all()


def test_what_is_out_of_bounds_is_shown_at_the_bound_and_colours_are_kept() -> None:
    image = np.array([[[-3.0]], [[np.nan]], [[7.0]]])[None]
    assert grid(image, 1, enlarged=2).tolist() == [[[0, 0, 255]] * 2] * 2
    assert grid(np.ones((1, 2, 1, 1)), 1).shape == (1, 1)
