"""The config as the wings take it, and as manifest and fingerprint have it."""

import dataclasses
import hashlib
import json
import pickle

import cv2
import numpy as np
import pytest

from configs import preprocess
from odin_jax.shared import errors
from preprocessing import matchers, settings


def test_wings_get_what_the_config_says():
  config = preprocess.get_config()
  config.update(fps=2.0, window_s=3.0, views_per_pair=6, fov_deg=80.0)
  config.views.min_points = 7
  checked = settings.checked(config)
  assert checked.keyframes.fps == 2.0 and checked.keyframes.motion is None
  assert checked.solving.max_gap == 6
  assert checked.solving.poses.gate_deg == config.poses.gate_deg
  rules = checked.views.rules
  assert (rules.num_views, rules.fov_deg, rules.min_points) == (6, 80.0, 7)
  assert checked.matching.options == config.sphere.to_dict()
  assert checked.views.depth_px == 0
  config.static_weights, config.depth_px = True, 64
  assert settings.checked(config).views.depth_px == 64
  motion = settings.checked(config).keyframes.motion
  assert dataclasses.asdict(motion) == config.motion.to_dict()


@pytest.mark.parametrize('depth_px', [-1, 1025])
def test_maps_of_depth_have_a_side_that_can_be(depth_px):
  config = preprocess.get_config()
  config.depth_px = depth_px
  with pytest.raises(errors.UserError, match=f'config.depth_px={depth_px}'):
    settings.checked(config)


def test_settings_reach_other_processes_as_they_are():
  checked = settings.checked(preprocess.get_config())
  assert pickle.loads(pickle.dumps(checked)) == checked
  with pytest.raises(dataclasses.FrozenInstanceError):
    checked.max_bad_share = 1


def test_the_manifest_s_values_are_those_of_the_config():
  config = preprocess.get_config()
  config.export_formats = ('nerfstudio', 'colmap', 'colmap')
  values = json.loads(json.dumps(settings.checked(config).values))
  expected = json.loads(json.dumps(config.to_dict()))
  assert values == {**expected, 'export_formats': ['colmap', 'nerfstudio']}


def test_a_mask_counts_by_what_it_shows(tmp_path, monkeypatch):
  picture = np.full((32, 64), 255, np.uint8)
  picture[:4] = 0
  cv2.imwrite(str(tmp_path / 'mask.png'), picture)
  monkeypatch.chdir(tmp_path)
  config = preprocess.get_config()
  config.mask = 'mask.png'
  checked = settings.checked(config)
  assert checked.solving.mask == str(tmp_path / 'mask.png')
  assert checked.values['mask'] == str(tmp_path / 'mask.png')
  digest = hashlib.sha256((tmp_path / 'mask.png').read_bytes()).hexdigest()
  used = checked.part_values()
  assert used['files_sha256'] == {'mask': digest} and 'mask' not in used


def test_files_of_a_matcher_count_beside_the_mask(tmp_path, monkeypatch):
  """Also where an option of the matcher has the name of another file."""
  picture = np.full((32, 64), 255, np.uint8)
  picture[:4] = 0
  cv2.imwrite(str(tmp_path / 'a.png'), picture)
  (tmp_path / 'b.bin').write_bytes(b'another file')
  path = str(tmp_path / 'b.bin')
  monkeypatch.setattr(
    matchers,
    'checked',
    lambda name, options: matchers.Settings(
      name=name, module='', options={'mask': path}, files=('mask',)
    ),
  )
  config = preprocess.get_config()
  config.mask = str(tmp_path / 'a.png')

  def digests():
    return settings.checked(config).part_values()['files_sha256']

  first = digests()
  assert first == {
    'mask': hashlib.sha256((tmp_path / 'a.png').read_bytes()).hexdigest(),
    'sphere.mask': hashlib.sha256(b'another file').hexdigest(),
  }
  picture[:8] = 0
  cv2.imwrite(str(tmp_path / 'a.png'), picture)
  assert digests()['mask'] != first['mask']


@pytest.mark.parametrize('table', ['frames', 'poses', 'views', 'sphere'])
def test_a_table_has_the_fields_of_what_is_made_of_it(table):
  config = preprocess.get_config()
  with config.unlocked():
    config[table].extra = 1.0
  with pytest.raises(
    errors.UserError, match=rf"config\.{table}: .*\['extra'\]"
  ):
    settings.checked(config)


def test_an_unknown_matcher_is_refused_by_its_name():
  config = preprocess.get_config()
  config.matcher = 'nonsense'
  with pytest.raises(
    errors.UserError, match="config.matcher='nonsense': give one of dust3r, sph"
  ):
    settings.checked(config)


def test_only_a_projection_that_is_named_is_trusted():
  config = preprocess.get_config()
  config.trust_projection = True
  with pytest.raises(errors.UserError, match='--projection=NAME'):
    settings.checked(config)
  config.projection = 'eac'
  assert settings.checked(config).reading.trust_projection
