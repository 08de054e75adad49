import numpy as np
import pytest

from micronet_lib.lab.data.superclasses import SUPERCLASSES, direction

PIXELS = np.arange(32, dtype=np.float32) - 15.5
RIGHT, DOWN = np.broadcast_arrays(PIXELS[None, None, :], PIXELS[None, :, None])


@pytest.mark.parametrize("look", SUPERCLASSES, ids=lambda look: look.name)
def test_classes_of_a_superclass_differ_in_one_attribute(look):
    fields = ("size", "turn", "amount", "hue")
    assert [f for f in fields if len(set(look.values(f))) > 1] == [look.varies]
    assert len(set(look.values(look.varies))) == 5


@pytest.mark.parametrize("look", SUPERCLASSES, ids=lambda look: look.name)
def test_a_shape_has_an_inside_and_an_outside_and_a_texture_is_a_share(look):
    u, v = RIGHT / look.size, DOWN / look.size
    for amount in look.values("amount"):
        distance = look.shape(u, v, np.full((1, 1, 1), amount, np.float32))
        assert distance.shape == (1, 32, 32)
        assert np.isfinite(distance).all()
        assert 0.005 < (distance < 0).mean() < 0.9
        texture = look.texture(u, v, distance, np.full((1, 32, 32), 0.5, np.float32))
        assert texture.min() >= 0
        assert texture.max() <= 1


def test_directions_are_unit_vectors_at_the_right_angle():
    turns = np.linspace(-2, 2, 1001, dtype=np.float32)
    cos, sin = direction(turns)
    np.testing.assert_allclose(cos, np.cos(2 * np.pi * turns.astype(float)), atol=2e-5)
    np.testing.assert_allclose(sin, np.sin(2 * np.pi * turns.astype(float)), atol=2e-5)
    np.testing.assert_allclose(cos * cos + sin * sin, 1, atol=1e-6)
