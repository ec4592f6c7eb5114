"""Keyframes of a video as records, beside its pairs and against the truth."""

import numpy as np
import pytest

from odin_jax.shared import (
  camera,
  depth_png,
  panorama_schema,
  psnr,
  record_folder,
)
from preprocessing.procedural import footage, raycaster, true_depth
from preprocessing.running import workers
from preprocessing.views import panorama_records
from preprocessing.writing import jpeg, merging
from tests.helpers import tiny_videos


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  """A finished run that keeps panoramas."""
  folder = tmp_path_factory.mktemp('run')
  (path,) = tiny_videos.write(folder, 1)
  output = folder / 'records'
  (job,) = tiny_videos.jobs([path], output, panorama_records=True)
  outcome = workers.make_part(job, lambda report: None)
  assert not outcome.error and outcome.seconds
  # It is done, and so are its panoramas.
  assert not workers.make_part(job, lambda report: None).seconds
  note = output / panorama_schema.FOLDER / 'parts' / f'{path.stem}.json'
  assert note.is_file()
  tiny_videos.finish([path], output, [outcome])
  merging.merge(
    output / panorama_schema.FOLDER,
    video_ids=[path.stem],
    config={},
    tool='preprocessing.run',
    schema_of=panorama_schema.PANORAMAS,
  )
  return output


@pytest.fixture(scope='module')
def panoramas(output):
  return list(
    record_folder.RecordFolder(
      output / panorama_schema.FOLDER, 'train', panorama_schema.PANORAMAS
    )
  )


def test_panoramas_have_the_poses_of_their_pairs(output, panoramas):
  pose_at = {record['time_s']: record['frame2scene'] for record in panoramas}
  pairs = record_folder.RecordFolder(output, 'train')
  assert len(pairs) > 2
  for record in pairs:
    for side in ('source', 'target'):
      np.testing.assert_array_equal(
        pose_at[record[f'{side}/time_s']], record[f'{side}/frame2scene']
      )


def test_panoramas_show_the_world_and_know_how_far_it_is(panoramas):
  world = tiny_videos.world(0)
  poses = {
    footage.picture_time_s(record['time_s']): record['frame2scene'].astype(
      np.float64
    )
    for record in panoramas
  }
  unit_m = true_depth.metres_per_unit(world, poses)
  num_known = 0
  for time_s, record in zip(poses, panoramas, strict=True):
    size = {'width': record['width_px'], 'height': record['height_px']}
    truth = footage.render_panorama(world, time_s, **size)
    # What a compressed video leaves of it.
    assert psnr.psnr_db(jpeg.decode(record['image']), truth) > 25
    distance = depth_png.decode(record['distance'], aspect=2)
    frame2world = world.walk.frame2world(time_s)
    rays = raycaster.panorama_rays(*distance.shape[::-1])
    rays = raycaster.rotate(frame2world[:, :3], rays)
    true = world.scene.cast(frame2world[:, 3], rays, time_s).distance / unit_m
    known = distance > 0
    num_known += known.sum()
    error = np.abs(distance[known] / true[known] - 1)
    assert np.median(error) < 0.05
    mask = jpeg.decode_grey(record['mask'])
    # 60 degrees below the horizon begins the holder.
    assert mask[-20:].all() and not mask[: len(mask) // 2].any()
    assert not known[mask > 0].any()
  assert num_known > 100


def test_the_nearest_point_of_a_cell_counts():
  rays = camera.equirect_to_direction(
    np.array([3.2, 3.9, 0.1]), np.array([5.5, 5.1, 15.9]), 32, 16
  )
  points = rays * np.array([2.0, 1.5, 7.0])[:, None]
  found = panorama_records.rasterise(points, 32)
  expected = np.full((16, 32), np.inf)
  expected[5, 3], expected[15, 0] = 1.5, 7.0
  np.testing.assert_allclose(found, expected)


def test_a_run_without_panoramas_keeps_none(tmp_path):
  folder = merging.claim_panoramas(tmp_path, are_kept=True, tool='a')
  (folder / 'left').write_text('of the run before')
  merging.claim_panoramas(tmp_path, are_kept=False, tool='a')
  assert not folder.exists()
