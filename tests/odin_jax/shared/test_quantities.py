"""How figures are written for people."""

import pytest

from odin_jax.shared import quantities


def test_a_value_has_its_unit_and_digits():
  assert quantities.text('rotation_deg', 0.01477) == '0.015°'
  assert quantities.text('kept_share', 0.9567) == '95.7 %'
  assert quantities.text('psnr', 18.034) == '18.03 dB'
  assert quantities.text('records', 12_345) == '12\u202f345'
  assert quantities.text('sampson_px', None) == quantities.MISSING
  assert quantities.heading('seconds') == 'time, s'
  assert quantities.heading('ssim') == 'SSIM'


def test_a_table_has_a_row_per_figure_and_time_apart():
  table = quantities.table(
    {
      'a': {'frames': 3, 'kept_share_per_gap': {'10': 0.5, '2': 1.0}},
      'b': {'kept_share_per_gap': {'3': 0.25}, 'flips': 0},
    }
  )
  kept = quantities.QUANTITIES['kept_share_per_gap'].words
  assert table == [
    ['', 'a', 'b'],
    ['frames used', '3', '–'],
    [f'{kept}, 2 s apart', '100.0 %', '–'],
    [f'{kept}, 3 s apart', '–', '25.0 %'],
    [f'{kept}, 10 s apart', '50.0 %', '–'],
    ['pairs that move the wrong way', '–', '0'],
  ]


def test_a_figure_without_words_is_an_error():
  for show in (
    lambda: quantities.table({'a': {'new_figure_px': 1.0}}),
    lambda: quantities.text('new_figure_px', 1.0),
    lambda: quantities.heading('new_figure_px'),
  ):
    with pytest.raises(KeyError, match='new_figure_px'):
      show()
