"""The protocols of tables, against the numbers of their sources."""

import pathlib

import numpy as np
import pytest

from odin_jax.benchmarks import LAYOUTS, protocols
from odin_jax.shared import errors

# Every number of every table, written down from its source and not from the
# files. pixelNeRF's list new_val, and eval/calc_metrics.py, --exclude_dtu_bad.
SCANS = [8, 21, 30, 31, 34, 38, 40, 41, 45, 55, 63, 82, 103, 110, 114]
BAD_VIEWS = [*range(3, 8), *range(16, 22), *range(36, 40)]
DTU = {
  'benchmark': 'dtu',
  'scenes': [f'scan{scan}' for scan in SCANS],
  'sampling': {},
}
# skimage's default window, LPIPS with VGG, a mean of means.
USUAL = {'lpips': 'vgg', 'ssim': 'uniform7', 'mean': 'views, then scenes'}
EXPECTED = {
  # launch_eval_dtu.sh, configs/zero123_scene.yaml (`scale` 2.02), README.
  'zeronvs_dtu': {
    **DTU,
    'views': {'sources': [[25]], 'count': 49, 'excluded': BAD_VIEWS},
    'image': {'size_px': [400, 300], 'crop': 'none', 'filter': 'lanczos'},
    'scale': {
      'policy': 'fixed',
      'divisors': [
        2.02 * float(scale)
        for scale in (
          '1.2 1.4 1.5 1.4 1.4 1.3 1.2 1.3 1.4 1.2 1.5 1.5 1.5 1.3 1.3'.split()
        )
      ],
    },
    'metrics': {**USUAL, 'quantised': False},
    'published': {'ZeroNVS': {'psnr': 13.552, 'ssim': 0.4689, 'lpips': 0.3804}},
  },
  # README, "DTU": -P; eval/calc_metrics.py reads PNGs.
  'pixelnerf_dtu': {
    **DTU,
    'views': {
      'sources': [
        list(map(int, text.split()))
        for text in (
          '25',
          '22 25 28',
          '22 25 28 40 44 48',
          '22 25 28 40 44 48 0 8 13',
        )
      ],
      'count': 49,
      'excluded': BAD_VIEWS,
    },
    'image': {'size_px': [400, 300], 'crop': 'none', 'filter': 'none'},
    'scale': {'policy': 'fixed', 'divisors': [1.0] * 15},
    'metrics': {**USUAL, 'quantised': True},
    'published': {},
  },
  'regnerf_dtu': {
    **DTU,
    'views': {
      'sources': [
        list(map(int, text.split()))
        for text in (
          '25 22 28',
          '25 22 28 40 44 48',
          '25 22 28 40 44 48 0 8 13',
        )
      ],
      'targets': [
        *(1, 2, 9, 10, 11, 12, 14, 15, 23, 24, 26, 27),
        *range(29, 36),
        *(41, 42, 43, 45, 46, 47),
      ],
    },
    'image': {'size_px': [400, 300], 'crop': 'none'},
    'scale': {'policy': 'resolved'},
    'metrics': {},
    'published': {},
  },
  # launch_eval_mipnerf360.sh, README.
  'zeronvs_mipnerf360': {
    'benchmark': 'mipnerf360',
    'scenes': 'bicycle bonsai counter garden kitchen room stump'.split(),
    'views': {'look_at_order': [2, 0, 20, 0, 0, 0, 11]},
    'image': {'size_px': [256, 256], 'crop': 'square'},
    'scale': {
      'policy': 'fixed',
      'unit': 'focus',
      'divisors': [1.0, 1.0, 0.9, 1.0, 0.9, 0.9, 1.1],
    },
    'metrics': {**USUAL, 'quantised': False},
    'sampling': {'guidance': 9.5},
    'published': {'ZeroNVS': {'psnr': 13.154, 'ssim': 0.2397, 'lpips': 0.6248}},
  },
  # docs/CLI_USAGE.md.
  'seva_single': {
    'benchmark': 'nerfstudio',
    'scenes': [],
    'views': {'split': 'train_test_split_1.json'},
    'image': {'size_px': [576, 576], 'crop': 'square'},
    'scale': {
      'policy': 'searched',
      'factors': [tenths / 10 for tenths in range(1, 21)],
    },
    'metrics': {},
    'sampling': {},
    'published': {},
  },
  'records': {
    'benchmark': 'records',
    'scenes': [],
    'views': {'seed': 0},
    'image': {'crop': 'square', 'filter': 'area'},
    'scale': {'policy': 'fixed'},
    'metrics': {
      'lpips': 'alex',
      'ssim': 'gaussian11',
      'quantised': True,
      'mean': 'pairs',
    },
    'sampling': {
      'sampler': 'ddim',
      'guidance': 1.0,
      'ema': True,
      'seed': 0,
    },
    'published': {},
  },
}
# These have a test of their own.
ELSEWHERE = {'syncdreamer_gso': 'test_gso.py'}
# https://github.com/kylesargent/ZeroNVS, README.md, "expected performance":
# SSIM, PSNR, LPIPS, scene, manual_gt_to_pred_scale.
PER_SCENE = {
  'zeronvs_dtu': """
    0.6094 13.2329 0.2988 8 1.2
    0.1739 8.4278 0.5783 21 1.4
    0.6311 14.1864 0.2332 30 1.5
    0.2992 8.9569 0.5117 31 1.4
    0.3862 14.049 0.3611 34 1.4
    0.3495 12.6771 0.4659 38 1.3
    0.4612 12.2447 0.3729 40 1.2
    0.4657 12.5998 0.3794 41 1.3
    0.369 11.241 0.4441 45 1.4
    0.4456 17.0177 0.4322 55 1.2
    0.5724 12.6056 0.2639 63 1.5
    0.5384 12.1564 0.2725 82 1.5
    0.5434 16.0902 0.3811 103 1.5
    0.6353 19.5588 0.349 110 1.3
    0.5529 18.2336 0.3613 114 1.3""",
  'zeronvs_mipnerf360': """
    0.1707 13.184 0.6536 bicycle 1.0
    0.3164 13.1137 0.6122 bonsai 1.0
    0.2473 12.2189 0.6823 counter 0.9
    0.207 15.2817 0.5366 garden 1.0
    0.254 13.2983 0.6245 kitchen 0.9
    0.3431 11.8591 0.5928 room 0.9
    0.1396 13.124 0.6717 stump 1.1""",
}


@pytest.mark.parametrize('name', protocols.NAMES)
def test_every_file_is_a_protocol_of_a_benchmark(name):
  protocol = protocols.load(name)
  assert protocol.name == name
  assert protocol.benchmark in ('records', *LAYOUTS)
  # What metrics.json holds is read again.
  assert protocols.parse(protocol.to_dict()) == protocol


def test_every_file_has_its_numbers_here_or_in_a_test_of_its_own():
  folder = pathlib.Path(__file__).parent
  known = [name for name in ELSEWHERE if (folder / ELSEWHERE[name]).is_file()]
  assert {*EXPECTED, *known} == set(protocols.NAMES)


@pytest.mark.parametrize('name', EXPECTED)
def test_every_line_is_that_of_its_source(name):
  protocol, expected = protocols.load(name), EXPECTED[name]
  assert protocol.benchmark == expected['benchmark']
  assert protocol.scenes == expected['scenes']
  for table in ('views', 'image', 'metrics', 'sampling'):
    assert getattr(protocol, table) == expected[table], table
  scale = dict(protocol.scale)
  assert scale.keys() == expected['scale'].keys()
  for key, value in expected['scale'].items():
    # Products in decimals.
    is_words = isinstance(value, str)
    assert scale[key] == (value if is_words else pytest.approx(value)), key
  figures = {
    system: {key: row[key] for key in row if key != 'source'}
    for system, row in protocol.published.items()
  }
  assert figures == expected['published']
  assert all('source' in row for row in protocol.published.values())


@pytest.mark.parametrize('name', PER_SCENE)
def test_published_means_are_those_of_the_table_per_scene(name):
  protocol = protocols.load(name)
  rows = [line.split() for line in PER_SCENE[name].split('\n') if line]
  ssim, psnr, lpips = np.array([row[:3] for row in rows], float).mean(0)
  figures = protocol.published['ZeroNVS']
  assert figures['psnr'] == pytest.approx(psnr, abs=0.0005)
  assert figures['ssim'] == pytest.approx(ssim, abs=0.00005)
  assert figures['lpips'] == pytest.approx(lpips, abs=0.00005)
  assert [row[3] for row in rows] == [
    scene.removeprefix('scan') for scene in protocol.scenes
  ]
  unit = 2.02 if name == 'zeronvs_dtu' else 1.0
  assert protocol.scale['divisors'] == pytest.approx(
    [unit * float(row[4]) for row in rows]
  )


def test_regnerf_on_dtu():
  views = protocols.load('regnerf_dtu').views
  assert [len(numbers) for numbers in views['sources']] == [3, 6, 9]
  assert len(views['targets']) == len(set(views['targets'])) == 25
  assert not set(views['targets']) & set(views['sources'][-1])
  # With the bad views, all 49.
  shown = {*views['targets'], *views['sources'][-1]}
  assert sorted({*shown, *BAD_VIEWS}) == list(range(49))


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
