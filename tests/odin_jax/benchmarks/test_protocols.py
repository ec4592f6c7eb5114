"""The protocols of tables, against the numbers of their sources."""

import numpy as np
import pytest

from odin_jax.benchmarks import LAYOUTS, protocols
from odin_jax.shared import errors

# pixelNeRF's list new_val.
SCANS = [8, 21, 30, 31, 34, 38, 40, 41, 45, 55, 63, 82, 103, 110, 114]
# pixel-nerf, eval/calc_metrics.py, --exclude_dtu_bad.
BAD_VIEWS = [*range(3, 8), *range(16, 22), *range(36, 40)]


@pytest.mark.parametrize('name', protocols.NAMES)
def test_every_file_is_a_protocol_of_a_benchmark(name):
  protocol = protocols.load(name)
  assert protocol.name == name
  assert protocol.benchmark in ('records', *LAYOUTS)
  # What metrics.json holds is read again.
  assert protocols.parse(protocol.to_dict()) == protocol


@pytest.mark.parametrize(
  'name', ['zeronvs_dtu', 'pixelnerf_dtu', 'regnerf_dtu']
)
def test_scans_of_dtu(name):
  protocol = protocols.load(name)
  assert protocol.scenes == [f'scan{scan}' for scan in SCANS]
  assert protocol.image['size_px'] == [400, 300]


def test_zeronvs_on_dtu():
  protocol = protocols.load('zeronvs_dtu')
  # launch_eval_dtu.sh, and `scale` of configs/zero123_scene.yaml.
  scales = '1.2 1.4 1.5 1.4 1.4 1.3 1.2 1.3 1.4 1.2 1.5 1.5 1.5 1.3 1.3'
  expected = 2.02 * np.array(scales.split(), float)
  np.testing.assert_allclose(protocol.scale['divisors'], expected)
  assert protocol.views == {
    'sources': [[25]],
    'count': 49,
    'excluded': BAD_VIEWS,
  }
  assert protocol.metrics['lpips'] == 'vgg'
  assert not protocol.metrics['quantised']
  assert protocol.published['ZeroNVS']['psnr'] == 13.552


def test_pixelnerf_on_dtu():
  views = protocols.load('pixelnerf_dtu').views
  assert views['excluded'] == BAD_VIEWS and views['count'] == 49
  # README, "DTU", -P.
  assert views['sources'] == [
    list(map(int, text.split()))
    for text in (
      '25',
      '22 25 28',
      '22 25 28 40 44 48',
      '22 25 28 40 44 48 0 8 13',
    )
  ]


def test_regnerf_on_dtu():
  views = protocols.load('regnerf_dtu').views
  assert [len(numbers) for numbers in views['sources']] == [3, 6, 9]
  assert len(views['targets']) == len(set(views['targets'])) == 25
  assert not set(views['targets']) & set(views['sources'][-1])
  # With the bad views, all 49.
  shown = {*views['targets'], *views['sources'][-1]}
  assert sorted({*shown, *BAD_VIEWS}) == list(range(49))


def test_zeronvs_on_mipnerf360():
  protocol = protocols.load('zeronvs_mipnerf360')
  # launch_eval_mipnerf360.sh.
  names = 'bicycle bonsai counter garden kitchen room stump'
  assert protocol.scenes == names.split()
  assert protocol.views['look_at_order'] == [2, 0, 20, 0, 0, 0, 11]
  assert protocol.scale['divisors'] == [1.0, 1.0, 0.9, 1.0, 0.9, 0.9, 1.1]
  assert protocol.sampling['guidance'] == 9.5


def test_seva_tries_twenty_scales():
  factors = protocols.load('seva_single').scale['factors']
  np.testing.assert_allclose(factors, np.arange(1, 21) / 10)


TABLE = """
name = "mine"
benchmark = "dtu"
scenes = ["a", "b"]
[views]
sources = [[0], [0, 1]]
targets = [2, 3]
[image]
size_px = [8, 8]
[scale]
policy = "fixed"
divisors = [1.0, 2.0]
"""


def test_a_file_of_ones_own(tmp_path):
  path = tmp_path / 'mine.toml'
  path.write_text(TABLE)
  assert protocols.load(path).scale['divisors'] == [1.0, 2.0]


@pytest.mark.parametrize(
  'old, new, words',
  [
    ('name', 'title', 'name: a str is needed'),
    ('[image]', '[picture]', 'picture: unknown'),
    ('size_px', 'size', 'image.size: unknown'),
    ('"fixed"', '"guessed"', "scale.policy: 'guessed' is none of fixed"),
    ('[1.0, 2.0]', '[1.0]', 'scale.divisors: 1 for 2 scenes'),
    ('[8, 8]', '8', 'image.size_px: 8 is no list of a width'),
    ('"dtu"', '"dtu', 'no TOML'),
    ('["a", "b"]', '[1, 2]', 'scenes: .1, 2. is no list'),
    ('["a", "b"]', '["a", "a"]', 'scenes: .* is no list of different names'),
    ('[[0], [0, 1]]', '[0]', 'views.sources: .0. is no list of lists'),
    ('[[0], [0, 1]]', '[[]]', 'views.sources'),
    ('[[0], [0, 1]]', '[["0"]]', 'views.sources'),
    ('sources = [[0], [0, 1]]', '', 'views: needs one of sources'),
    ('[2, 3]', '[2, 2]', 'views.targets: .* is no list of different numbers'),
    ('[2, 3]', '[-1]', 'views.targets'),
    ('targets = [2, 3]', 'count = true', 'views.count: True is no number'),
    ('[8, 8]', '[8]', 'image.size_px'),
    ('[1.0, 2.0]', '[0.0, 2.0]', 'scale.divisors: .* no list of positive'),
    ('[1.0, 2.0]', '[nan, 2.0]', 'scale.divisors'),
    ('[1.0, 2.0]', '["1", "2"]', 'scale.divisors'),
    ('"fixed"', '"searched"', 'scale.factors: not there'),
    ('"fixed"', '"searched"\nfactors = [0]', 'scale.factors'),
    ('[scale]', '[published]\nODIN = 13.0\n[scale]', 'published: needs'),
    ('[scale]', '[published.ODIN]\npsn = 13.0\n[scale]', 'published: needs'),
  ],
)
def test_what_no_protocol_may_say_is_named(tmp_path, old, new, words):
  path = tmp_path / 'mine.toml'
  path.write_text(TABLE.replace(old, new, 1))
  with pytest.raises(errors.UserError, match=words) as error:
    protocols.load(path)
  assert str(error.value).startswith(f'{path}: ')


def test_an_unknown_name_lists_those_there_are():
  with pytest.raises(errors.UserError, match='zeronvs_dtu'):
    protocols.load('zeronvs')


def test_departures_are_the_lines_that_were_not_followed(tmp_path):
  path = tmp_path / 'mine.toml'
  path.write_text(TABLE)
  here = {
    'scenes': ['a', 'b'],
    'image.size_px': [32, 32],
    # The table says nothing of it.
    'image.crop': 'square',
    'scale.policy': 'fixed',
  }
  assert protocols.departures(protocols.load(path), here) == [
    {'line': 'image.size_px', 'published': [8, 8], 'here': [32, 32]}
  ]
