"""Views imagined along a path: what conditions them, and what is written."""

import json
import subprocess
import sys

import av
import cv2
import numpy as np
from PIL import Image, PngImagePlugin
import pytest

from odin_jax import familiarity
from odin_jax.geometry import trajectory
from odin_jax.shared import camera
from tests.helpers import commands
from tests.helpers.posed_records import write_records

SIZE_PX = 20
# Writes into every sample what it was made from: red tells which view was the
# source (a view's red level is 1 + its source's), green and blue the depth and
# the side of the new camera in the source's axes. The last pixel tells the seed,
# the one before it the source's median depth; the last of the first row how many
# other views were given, the red level of the first of them, and how deep in its
# axes the new camera is.
FAKE_MODEL = f"""
import numpy as np
from odin_jax import predictors

class Model:
  image_size_px = {SIZE_PX}
  num_sources = 3
  protocol = {{'checkpoint_step': 7}}
  def predict(self, pairs, seeds):
    source, target2source = pairs.source, pairs.target2source
    assert source.dtype == np.uint8 and source.shape[1:] == (20, 20, 3)
    assert np.all(pairs.fov_deg == 75.0) and seeds.shape == pairs.fov_deg.shape
    sample = np.zeros(source.shape, np.float32)
    sample[..., 0] = (source[..., 0] + 1) / 255
    sample[..., 1] = target2source[:, None, None, 2, 3]
    sample[..., 2] = 0.5 + target2source[:, None, None, 0, 3]
    sample[:, -1, -1, 0] = seeds % 251 / 255
    sample[:, -1, -2, 0] = pairs.median_depth
    if pairs.more is not None:
      more = pairs.more
      assert np.all(more.fov_deg[more.is_there] == 75.0)
      sample[:, 0, -1, 0] = more.is_there.sum(1) / 255
      sample[:, 0, -1, 1] = more.image[:, 0, 0, 0, 0] / 255
      sample[:, 0, -1, 2] = more.target2view[:, 0, 2, 3]
    return sample

predictors.load_model = lambda workdir, **settings: Model()
"""


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
  """A wide picture: a ramp of red in its square middle, green at the sides."""
  image = np.zeros((40, 100, 3), np.uint8)
  image[..., 1] = 200
  image[:, 30:70] = 0
  image[:, 30:70, 0] = 10
  path = tmp_path_factory.mktemp('photo') / 'photo.png'
  cv2.imwrite(str(path), image[..., ::-1])
  return path


def arguments(photo, output, *flags):
  return [
    f'--workdir={photo.parent}',
    f'--image={photo}',
    f'--output={output}',
    '--fov_deg=75',
    '--seed=3',
    *flags,
  ]


def generate(*command_lines):
  """Runs the command with the fake model; every line has to succeed."""
  results = commands.run_all('odin_jax.generate', command_lines, FAKE_MODEL)
  for status, stderr in results:
    assert status == 0, stderr
  return [stderr for _, stderr in results]


def read_frames(output):
  content = json.loads((output / 'poses.json').read_text())
  images = [
    cv2.imread(str(output / frame['file']))[..., ::-1]
    for frame in content['frames']
  ]
  return content, np.stack(images)


KINDS = ('input', 'previous', 'random')


@pytest.fixture(scope='module')
def outputs(photo):
  folder = photo.parent / 'outputs'
  folder.mkdir()
  forward = ['--trajectory=forward', '--num_frames=7', '--step_length=0.1']
  orbit = ['--trajectory=orbit_right', '--num_frames=4', '--step_length=0.3']
  generate(
    *(
      arguments(photo, folder / kind, *forward, f'--condition_on={kind}')
      for kind in (*KINDS, 'all')
    ),
    arguments(photo, folder / 'orbit', *orbit, '--condition_on=previous'),
    arguments(photo, folder / 'shared', '--num_frames=6', '--noise=shared'),
    arguments(photo, folder / 'shorter', '--num_frames=6'),
    arguments(photo, folder / 'shorter', '--num_frames=3', '--frames_per_s=4'),
    arguments(photo, folder / 'preview', *orbit, '--preview'),
    arguments(
      photo,
      folder / 'several',
      *forward,
      f'--image={panorama(folder)}',
      '--trajectory=left',
    ),
    *(
      arguments(photo, folder / name, f'--trajectory={folder / path}', *flags)
      for name, path, flags in FILES
    ),
    arguments(
      photo,
      folder / 'anchors',
      '--num_frames=10',
      '--step_length=0.1',
      '--order=anchors',
      '--condition_on=nearest',
    ),
    arguments(panorama(folder), folder / 'round', '--trajectory=turn_360'),
    arguments(
      panorama(folder),
      folder / 'walk',
      '--trajectory=forward',
      '--num_frames=5',
      '--condition_on=all',
    ),
  )
  return folder


# The cameras of `orbit` as other programs have them.
FILES = (
  ('of_poses', 'orbit/poses.json', ()),
  ('of_preview', 'preview/path.json', ()),
  ('of_nerfstudio', 'orbit/transforms.json', ()),
  ('of_colmap', 'orbit/sparse/0', ()),
  ('of_folder', 'orbit', ('--scale=2',)),
)


def panorama(folder):
  """Red tells the longitude, 0 to 250 from left to right; its header the kind."""
  path = folder / 'panorama.png'
  if not path.exists():
    red = np.linspace(0, 250, 512).astype(np.uint8)
    image = np.zeros((256, 512, 3), np.uint8)
    image[..., 0] = red
    image[..., 1] = 100
    text = PngImagePlugin.PngInfo()
    text.add_itxt('XML:com.adobe.xmp', 'GPano:ProjectionType="equirectangular"')
    Image.fromarray(image).save(path, pnginfo=text)
  return path


@pytest.mark.parametrize('kind', KINDS)
def test_views_follow_the_path_from_the_views_they_should(outputs, kind):
  content, frames = read_frames(outputs / kind)
  figures = json.loads((outputs / kind / 'generate.json').read_text())
  sources = figures['conditioned_on']
  assert len(frames) == len(sources) == 7 and sources[0] is None
  # Only the given image has a known median depth: the unit.
  given = np.array([source == 0 for source in sources[1:]])
  np.testing.assert_array_equal(frames[1:, -1, -2, 0], 255 * given)
  # The input, cut to its middle, is the first view.
  np.testing.assert_array_equal(
    frames[0], np.broadcast_to(np.uint8([10, 0, 0]), (SIZE_PX, SIZE_PX, 3))
  )
  assert [frame['file'] for frame in content['frames']] == [
    f'frames/{index:03d}.png' for index in range(7)
  ]
  shape = (content['fov_deg'], content['width'], content['height'])
  assert shape == (75.0, SIZE_PX, SIZE_PX)
  poses = np.array([frame['camera2scene'] for frame in content['frames']])
  np.testing.assert_array_equal(
    poses.reshape(-1, 3, 4), trajectory.camera_path('forward', 7, 0.1)
  )
  expected = {'input': [0] * 6, 'previous': list(range(6))}
  if kind in expected:
    assert sources[1:] == expected[kind]
  for index, source in enumerate(sources[1:], start=1):
    assert 0 <= source < index
    assert frames[index, 0, 0, 0] == frames[source, 0, 0, 0] + 1
    moved = 0.1 * (index - source) * 255
    assert abs(frames[index, 0, 0, 1] - moved) < 0.6


def test_all_views_that_exist_are_given_the_nearest_first(outputs):
  _, frames = read_frames(outputs / 'all')
  figures = json.loads((outputs / 'all' / 'generate.json').read_text())
  # Of three sources the given image is always the first.
  expected = [None, [0], [0, 1], *([0, i - 1, i - 2] for i in range(3, 7))]
  assert figures['conditioned_on'] == expected
  # All are the given image's children.
  assert set(frames[1:, 5, 5, 0]) == {frames[0, 5, 5, 0] + 1}
  told = frames[2:, 0, -1]
  np.testing.assert_array_equal(told[:, 0], [1, 2, 2, 2, 2])
  np.testing.assert_array_equal(told[:, 1], frames[1:-1, 0, 0, 0])
  # The view before is a step behind.
  assert np.abs(told[:, 2] - 0.1 * 255).max() < 0.6


def test_several_images_and_paths_are_what_each_would_be_alone(outputs):
  folder = outputs / 'several'
  names = [
    f'{x}-{y}' for x in ('panorama', 'photo') for y in ('forward', 'left')
  ]
  assert sorted(x.name for x in folder.iterdir() if x.is_dir()) == names
  assert not (folder / 'poses.json').exists()
  content, frames = read_frames(folder / 'photo-forward')
  alone, expected = read_frames(outputs / 'input')
  assert content == alone
  np.testing.assert_array_equal(frames, expected)
  first, second = (
    json.loads((x / 'generate.json').read_text())
    for x in (folder / 'photo-forward', outputs / 'input')
  )
  ran = {'seconds', 'peak_rss_mb'}
  assert {k: first[k] for k in {*first} - ran} == {
    k: second[k] for k in {*second} - ran
  }
  figures = json.loads((folder / 'panorama-left' / 'generate.json').read_text())
  assert figures['panorama'] and figures['trajectory'] == 'left'
  _, frames = read_frames(folder / 'panorama-left')
  # Green is how deep the new camera is, blue how far to the right.
  np.testing.assert_allclose(frames[1:, 5, 5, 1], 0)
  moved = 127.5 - 25.5 * np.arange(1, 7)
  assert np.abs(frames[1:, 5, 5, 2] - moved.clip(0)).max() < 1


def test_poses_are_given_in_the_axes_of_the_source(outputs):
  _, frames = read_frames(outputs / 'orbit')
  path = trajectory.camera_path('orbit_right', 4, 0.3)
  for index in range(1, 4):
    step = camera.relative(path[index - 1], path[index])
    expected = np.clip([step[2, 3], 0.5 + step[0, 3]], 0, 1) * 255
    assert np.abs(frames[index, 0, 0, 1:] - expected).max() < 0.6


def test_a_preview_has_the_cameras_of_the_run(outputs):
  path = json.loads((outputs / 'preview' / 'path.json').read_text())
  content, _ = read_frames(outputs / 'orbit')
  assert path['fov_deg'] == content['fov_deg']
  assert [frame['camera2scene'] for frame in path['frames']] == [
    frame['camera2scene'] for frame in content['frames']
  ]
  drawn = cv2.imread(str(outputs / 'preview' / 'path.png'))
  again = cv2.imread(str(outputs / 'orbit' / 'path.png'))
  np.testing.assert_array_equal(drawn, again)
  # Paper, four cameras, and the first one in red.
  assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10
  assert ((drawn[..., 2] > 180) & (drawn[..., 0] < 60)).any()
  assert not (outputs / 'preview' / 'frames').exists()


@pytest.mark.parametrize('name, path, flags', FILES)
def test_a_path_is_taken_from_what_other_programs_write(
  outputs, name, path, flags
):
  del path
  content, frames = read_frames(outputs / name)
  expected, of_orbit = read_frames(outputs / 'orbit')
  found, poses = (
    np.array([frame['camera2scene'] for frame in x['frames']]).reshape(-1, 3, 4)
    for x in (content, expected)
  )
  poses[:, :, 3] *= 2 if flags else 1
  np.testing.assert_allclose(found, poses, atol=1e-12)
  np.testing.assert_array_equal(found[0], camera.identity_pose())
  assert len(frames) == len(of_orbit) == 4


def test_what_is_left_out_of_a_path_is_said(tmp_path, photo):
  poses = trajectory.camera_path('forward', 3, 0.5)
  (tmp_path / 'path.json').write_text(
    json.dumps(
      {
        'fov_deg': 40.0,
        'frames': [{'camera2scene': pose.ravel().tolist()} for pose in poses],
      }
    )
  )
  of_file = f'--trajectory={tmp_path / "path.json"}'
  named = ('--trajectory=forward', '--num_frames=3')
  lines = [
    [line for line in stderr.splitlines() if '--trajectory=' in line]
    for stderr in generate(
      *(
        arguments(photo, tmp_path / str(number), '--preview', *flags)
        for number, flags in enumerate(
          [
            (of_file,),
            (of_file, '--fov_deg=40'),
            (of_file, '--fov_deg=40', '--scale=19'),
            (of_file, '--fov_deg=40', '--scale=21'),
            (*named, '--step_length=9'),
            (*named, '--step_length=11'),
          ]
        )
      )
    )
  ]
  assert [len(found) for found in lines] == [1, 0, 0, 1, 0, 1]
  assert '40.0 degrees wide, the views are 75.0' in lines[0][0]
  assert '21 scene units' in lines[3][0] and 'smaller --scale' in lines[3][0]
  assert '22 scene units' in lines[5][0] and '--step_length' in lines[5][0]


def test_anchors_are_made_first_and_others_from_the_nearest(outputs):
  figures = json.loads((outputs / 'anchors' / 'generate.json').read_text())
  # 3, 6 and 9 first, each from the nearest of those before.
  assert figures['conditioned_on'] == [None, 0, 3, 0, 3, 6, 3, 6, 9, 6]


def test_what_a_panorama_shows_is_cut_where_the_new_camera_looks(outputs):
  content, frames = read_frames(outputs / 'round')
  assert len(frames) == 16 and content['fov_deg'] == 75
  # Of a turn each source is what the panorama shows there, seen from its place:
  # its middle column has the red of that longitude, one more for the model.
  longitude = np.arange(16) / 15 * 360 + 180
  reds = longitude % 360 / 360 * 250
  middle = frames[:, SIZE_PX // 2, SIZE_PX // 2, 0].astype(float)
  middle[1:] -= 1
  assert np.abs(middle - reds)[(reds > 15) & (reds < 235)].max() < 6
  np.testing.assert_array_equal(frames[1:, 5, 5, 1], 0)
  # Of a walk the camera moves, and looks ahead: the source stays the same.
  _, walk = read_frames(outputs / 'walk')
  assert len({frame[5, 5, 0] for frame in walk[1:]}) == 1
  moved = walk[1:, 5, 5, 1].astype(float) / 255
  np.testing.assert_allclose(moved, 0.05 * np.arange(1, 5), atol=3e-3)
  figures = json.loads((outputs / 'walk' / 'generate.json').read_text())
  assert figures['panorama'] and figures['fov_from'] == 'flag'
  assert figures['conditioned_on'][-1] == [0, 3, 2]


def test_every_view_has_its_own_noise_unless_it_is_shared(outputs):
  _, own = read_frames(outputs / 'input')
  _, again = read_frames(outputs / 'previous')
  assert len(set(own[1:, -1, -1, 0])) == 6
  np.testing.assert_array_equal(own[1:, -1, -1, 0], again[1:, -1, -1, 0])
  _, shared = read_frames(outputs / 'shared')
  assert set(shared[1:, -1, -1, 0]) == {3}


def test_the_video_shows_every_frame_large_enough_in_any_browser(outputs):
  _, frames = read_frames(outputs / 'shorter')
  path = outputs / 'shorter' / 'video.mp4'
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    assert stream.codec_context.name == 'h264'
    assert stream.codec_context.pix_fmt == 'yuv420p'
    assert stream.average_rate == 4
    shown = [
      frame.to_ndarray(format='rgb24') for frame in container.decode(stream)
    ]
  assert len(shown) == len(frames) == 3
  for picture, frame in zip(shown, frames):
    assert picture.shape == (260, 260, 3)
    # Chroma subsampling and compression cost a few levels.
    assert np.abs(picture.mean((0, 1)) - frame.mean((0, 1))).max() < 6
  # The index comes before the pictures, so playing needs no whole file.
  content = path.read_bytes()
  assert content.index(b'moov') < content.index(b'mdat')


def test_a_preview_does_not_mix_with_the_views_of_another_path(outputs, photo):
  before = (outputs / 'shorter' / 'path.png').read_bytes()
  results = commands.run_all(
    'odin_jax.generate',
    [arguments(photo, outputs / 'shorter', '--preview')],
    FAKE_MODEL,
  )
  commands.assert_refused(results, [['holds the views of a run']])
  assert (outputs / 'shorter' / 'path.png').read_bytes() == before


def test_a_shorter_run_leaves_no_frame_of_a_longer_one(outputs):
  assert len(list((outputs / 'shorter' / 'frames').iterdir())) == 3


def test_what_is_transparent_shows_the_background(tmp_path):
  # Hidden below full transparency: red.
  image = np.zeros((SIZE_PX, SIZE_PX, 4), np.uint8)
  image[..., 2] = 255
  path = tmp_path / 'cut_out.png'
  cv2.imwrite(str(path), image)
  short = ['--num_frames=2']
  known, unknown = tmp_path / 'known', tmp_path / 'unknown'
  unknown.mkdir()
  noise = np.random.default_rng(0).integers(
    0, 256, (familiarity.FEWEST_IMAGES, SIZE_PX, SIZE_PX, 3), np.uint8
  )
  known.mkdir()
  familiarity.write(known, noise, (30.0, 40.0))
  said = generate(
    arguments(path, tmp_path / 'white', *short, f'--workdir={known}'),
    arguments(
      path,
      tmp_path / 'other',
      *short,
      '--background=10,20,30',
      f'--workdir={unknown}',
    ),
  )
  # What is white is unlike noise, on which the first model was trained; of the
  # second nothing is known.
  figures = [
    json.loads((tmp_path / name / 'generate.json').read_text())['familiarity']
    for name in ('white', 'other')
  ]
  assert ['unlike what the model' in text for text in said] == [True, False]
  assert figures[0]['distance'] > figures[0]['limit'] and figures[1] is None
  # Nor was it of such a lens.
  lens = 'views are 75 degrees wide, those that the model was trained on 30 to'
  assert [lens in text for text in said] == [True, False]
  assert figures[0]['fov_deg'] == [30, 40]
  for name, colour in (('white', 255), ('other', (10, 20, 30))):
    _, frames = read_frames(tmp_path / name)
    assert (frames[0] == colour).all()


def test_bad_input_gets_one_line_and_status_2(tmp_path, photo):
  text = tmp_path / 'notes.jpg'
  text.write_text('no image')
  cut = tmp_path / 'cut.jpg'
  ramp = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
  jpeg = cv2.imencode('.jpg', ramp)[1].tobytes()
  cut.write_bytes(jpeg[: len(jpeg) // 2] + b'\xff\xd9')
  out = tmp_path / 'out'
  results = commands.run_all(
    'odin_jax.generate',
    [
      arguments(text, out),
      arguments(tmp_path / 'absent.png', out),
      arguments(cut, out),
      arguments(photo, out, '--background=greenish'),
      arguments(photo, out, '--trajectory=sideways'),
      arguments(photo, out, '--num_frames=1'),
      arguments(photo, out, f'--image={photo}'),
      arguments(photo, out, '--scale=2'),
      arguments(photo, out, '--trajectory=turn_360', '--step_length=0.1'),
      arguments(photo, out, f'--trajectory={text}'),
      arguments(photo, out, f'--trajectory={tmp_path}'),
      arguments(photo, out, '--panorama'),
      arguments(photo, out, f'--workdir={tmp_path / "absent"}'),
      arguments(photo, out, '--step=0.1'),
    ],
    FAKE_MODEL,
  )
  commands.assert_refused(
    results,
    [
      ['notes.jpg'],
      ['absent.png'],
      ['cut.jpg', 'rows are missing'],
      ['greenish'],
      ['sideways'],
      ['num_frames'],
      ['out/photo', '2 of the given images'],
      ['--scale', '--trajectory=forward'],
      ['--step_length', 'turn_360'],
      ['notes.jpg', 'no whole JSON'],
      ['cameras, images and points3D'],
      ['100x40', 'twice as wide'],
      ['absent'],
      ['--step=0.1', 'is no whole number', '--step_length'],
    ],
  )
  # A folder without a checkpoint, and the real loader.
  results = commands.run_all('odin_jax.generate', [arguments(photo, out)])
  commands.assert_refused(results, [[str(photo.parent)]])
  assert not out.exists()


def command(module, *flags):
  ((status, stderr),) = commands.run_all(f'odin_jax.{module}', [flags])
  assert status == 0, stderr


# What training leaves behind, of a tiny model with random parameters: compiling
# its initialisation and its step would take most of a minute.
WRITE_CHECKPOINT = """
import functools, pathlib, sys
import jax
import numpy as np
from configs import train
from odin_jax.models import encoders
from odin_jax.checkpoints import checkpoint
from odin_jax.training import step

config = checkpoint.plain(
  train.get_config('world,runlocal=True').to_dict()
)
generator = np.random.default_rng(0)
frozen = encoders.fit(
  config, generator.integers(0, 256, (40, 32, 32, 3), np.uint8)
)
state = jax.tree.map(
  lambda x: jax.numpy.asarray(generator.normal(0, 0.1, x.shape), x.dtype),
  jax.eval_shape(functools.partial(step.init, config)),
)
checkpoints = checkpoint.Checkpoints(pathlib.Path(sys.argv[1]))
checkpoints.save(2, state, frozen, config)
checkpoints.close()
print(checkpoint.params_sha256(state['ema']))
"""


def test_a_checkpoint_is_evaluated_generates_and_is_reconstructed(
  tmp_path, photo
):
  """The stages after training, with a real checkpoint."""
  records, workdir = tmp_path / 'records', tmp_path / 'train'
  write_records(records, 'test', {'c': 3})
  done = subprocess.run(
    [sys.executable, '-c', WRITE_CHECKPOINT, str(workdir)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  digest = done.stdout.strip()
  command(
    'evaluate',
    '--config=configs/evaluate.py',
    f'--data={records}',
    f'--workdir={workdir}',
    f'--output={tmp_path / "evaluate"}',
    '--config.num_steps=3',
  )
  metrics = json.loads((tmp_path / 'evaluate' / 'metrics.json').read_text())
  model = metrics['protocol']['model']
  assert model['checkpoint_step'] == 2 and model['num_steps'] == 3
  assert model['params_sha256'] == digest
  assert len(metrics['pairs']) == 3
  command(
    'generate',
    f'--workdir={workdir}',
    f'--image={photo}',
    '--trajectory=forward',
    f'--output={tmp_path / "generate"}',
    '--num_frames=4',
    '--num_steps=3',
  )
  content, frames = read_frames(tmp_path / 'generate')
  assert frames.shape == (4, 32, 32, 3) and content['width'] == 32
  command(
    'reconstruct',
    f'--views={tmp_path / "generate"}',
    f'--output={tmp_path / "reconstruct"}',
  )
  figures = json.loads(
    (tmp_path / 'reconstruct' / 'reconstruction.json').read_text()
  )
  assert figures['num_views'] == 4 and figures['points'] >= 0
