"""HDR and wide colours as BT.709 shows them."""

import numpy as np
import pytest

from mma_dfer_jax.data.light import change, to_bt709

HLG, PQ, LINEAR, BT709, BT2020, P3 = 18, 16, 8, 1, 9, 12


def shown(signal, curve: int, primaries: int) -> np.ndarray:
  return to_bt709(np.round(65535 * np.asarray(signal, float)).astype(np.uint16), curve, primaries)


@pytest.mark.parametrize("curve", [HLG, PQ, LINEAR, BT709])
def test_greys_stay_grey_and_in_order(curve):
  ramp = np.linspace(0, 1, 256)[None, :, None].repeat(3, 2)
  grey = shown(ramp, curve, BT2020)
  assert np.ptp(grey.astype(int), axis=-1).max() <= 1
  assert (np.diff(grey[0, :, 0].astype(int)) >= 0).all()
  assert (grey[0, 0].max(), grey[0, -1].min()) == (0, 255)


@pytest.mark.parametrize(
  ("signal", "curve", "light"),
  [(0.50807842, PQ, 100), (0.30103, PQ, 10.0), (0.5, HLG, 1000 * (1 / 12) ** 1.2), (0.5, LINEAR, 75)],
)  # the curves of BT.2100 at points where its formulas are easily done by hand
def test_curves(signal, curve, light):
  assert abs(int(shown([[[signal] * 3]], curve, BT709)[0, 0, 0]) - 255 * (light / 150) ** (1 / 2.4)) < 3


def test_colours_of_bt709_come_back():
  colours = np.random.default_rng(0).uniform(0.05, 0.95, (4, 4, 3))
  wide = (colours**2.4) @ np.linalg.inv([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]).T  # fmt: skip
  np.testing.assert_allclose(shown(wide ** (1 / 2.4), BT709, BT2020), 255 * colours, atol=1)


def test_what_is_said_of_a_file():
  assert change(HLG, BT2020) == "HDR (HLG, BT.2020) brought to BT.709"
  assert change(BT709, P3) == "wide colours (Display P3) brought to BT.709"
  assert change(None, 2) is change(BT709, BT709) is change(6, 6) is None
  with pytest.raises(ValueError, match="logarithmic"):
    change(9, BT709)
