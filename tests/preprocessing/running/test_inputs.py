"""Which videos a run is given, and what it says of the others at its end."""

import os
import pathlib

import pytest

from odin_jax.shared import errors
from preprocessing.running import closing, inputs


def touch(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def names(folder, found):
  return [str(path.relative_to(folder)) for path in found.videos]


def test_a_flat_folder_keeps_the_order_of_its_names(tmp_path):
  touch(tmp_path, 'b.mp4', 'a.MOV', 'c.mkv', 'a b.mp4')
  found = inputs.find(tmp_path, tmp_path / 'records')
  assert names(tmp_path, found) == sorted(os.listdir(tmp_path))
  assert not found.unusable and not found.others


def test_subfolders_are_searched_once_and_hidden_ones_not(tmp_path):
  touch(tmp_path, 'd/e/f/one.mp4', 'd/two.mp4', '.git/three.mp4', 'four.mp4')
  touch(tmp_path, 'd/ledger.jsonl', 'd/.five.mp4')
  (tmp_path / 'a_link').symlink_to(tmp_path / 'd' / 'e')
  (tmp_path / 'd' / 'up').symlink_to(tmp_path)
  (tmp_path / 'd' / 'self').symlink_to(tmp_path / 'd' / 'self')
  found = inputs.find(tmp_path, tmp_path / 'records')
  assert names(tmp_path, found) == ['a_link/f/one.mp4', 'd/two.mp4', 'four.mp4']
  assert [row['file'] for row in found.others] == ['d/self']


def test_a_link_whose_video_is_gone_is_a_video_that_was_not_used(tmp_path):
  touch(tmp_path, 'a.mp4')
  (tmp_path / 'b.mp4').symlink_to(tmp_path / 'nowhere' / 'b.mp4')
  (tmp_path / 'note').symlink_to(tmp_path / 'nowhere')
  found = inputs.find(tmp_path, tmp_path / 'records')
  assert names(tmp_path, found) == ['a.mp4']
  (row,) = found.unusable
  assert row['file'] == 'b.mp4' and 'not there; bring it back' in row['message']
  assert [row['file'] for row in found.others] == ['note']


def test_copies_of_a_video_are_told_with_the_first():
  assert closing.copies({'a': '1', 'b': '2'}) == []
  (line,) = closing.copies({'a': '1', 'b': '2', 'c': '1', 'd': '1'})
  assert line.startswith('2 videos are copies: c of a, d of a; ')


def test_what_the_run_itself_wrote_is_no_input(tmp_path):
  touch(tmp_path, 'a.mp4', 'records/rejected/b.mp4', 'records/manifest.json')
  found = inputs.find(tmp_path, tmp_path / 'records')
  assert names(tmp_path, found) == ['a.mp4'] and not found.others


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
  touch(tmp_path, 'a.mp4', 'secret/b.mp4')
  of_all = pathlib.Path.iterdir

  def iterdir(path):
    if path.name == 'secret':
      raise PermissionError(13, 'Permission denied')
    return of_all(path)

  monkeypatch.setattr(pathlib.Path, 'iterdir', iterdir)
  found = inputs.find(tmp_path, tmp_path / 'records')
  (row,) = found.unusable
  assert (row['file'], row['reason']) == (
    'secret',
    'folder that cannot be read',
  )


@pytest.mark.parametrize(
  'name, words',
  [
    (b'x' * 246 + b'.mp4', 'at most 245 bytes before the suffix, it has 246'),
    (b'\xc3\xa4' * 123 + b'.mp4', 'at most 245 bytes'),
    (b'caf\xe9.mp4', r'caf\\xe9.mp4: its name is not UTF-8; rename it'),
    (b'a\nb.mp4', 'a line break'),
    (b'a\x7fb.mp4', 'a line break or another control'),
    (b'..mp4', 'begins with a dot'),
    (b'...mp4', 'begins with a dot'),
    (b'.tmp-a.mp4', 'begins with a dot'),
    (b'a .mp4', 'a blank at an end'),
    (b'\xc2\xa0a.mp4', 'a blank at an end'),
    (b'#1.mp4', 'begins with #'),
  ],
)
def test_names_that_cannot_be_ids_are_refused_by_name(tmp_path, name, words):
  path = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b'/' + name))
  path.touch()
  with pytest.raises(errors.UserError, match=words) as error:
    inputs.find(path, tmp_path / 'records')
  str(error.value).encode()
  # In a folder it costs the others nothing; what is hidden is passed over.
  touch(tmp_path, 'good.mp4')
  found = inputs.find(tmp_path, tmp_path / 'records')
  assert names(tmp_path, found) == ['good.mp4']
  assert len(found.unusable) == (not name.startswith(b'.'))
  for row in found.unusable:
    assert row['message'].encode() and row['file'].encode()


@pytest.mark.parametrize(
  'stem', ['x' * 245, 'manifest', 'a.part', '-rf', 'käse', 'a  b', '~', 'con']
)
def test_other_names_are_ids(tmp_path, stem):
  touch(tmp_path, f'{stem}.mp4')
  assert len(inputs.find(tmp_path, tmp_path / 'records').videos) == 1


def test_a_path_that_is_too_long_for_a_file_is_not_there(tmp_path):
  with pytest.raises(errors.UserError, match='no such folder'):
    inputs.find(tmp_path / ('x' * 300), tmp_path / 'records')


@pytest.mark.parametrize(
  'message, reason',
  [
    ('v/1.mp4: truncated: ends at 3.00 s of 7.00 s; get it again', 'truncated'),
    (
      'v/1.mp4: not a video, or truncated (EOF); give',
      'not a video, or truncated',
    ),
    ('v/1.mp4: damaged at 3.25 s (bad); get the file', 'damaged at ... s'),
    (
      'v/1.mp4: 62% of its frames are damaged',
      '...% of its frames are damaged',
    ),
    ('v/1.mp4: TypeError: no such 3', 'TypeError'),
    (
      'v/1.mp4: 1360x360 is no 360-degree video: the left edge',
      '...x... is no 360-degree video',
    ),
  ],
)
def test_reasons_are_the_same_for_videos_alike(message, reason):
  assert closing.short_reason(message, pathlib.Path('v/1.mp4')) == reason


def test_the_most_frequent_reasons_are_listed():
  rows = [{'reason': name} for name in 'abbcccddddeeeeef']
  text = closing.used('out', num_videos=20, dropped=rows, num_excluded=2)
  assert text == (
    '4 of 20 videos used, 16 dropped: e (5), d (4), c (3), b (2), a (1), other '
    'reasons (1); 2 excluded; see out/ledger.jsonl'
  )
  text = closing.used('out', num_videos=4, dropped=[], num_excluded=0)
  assert text == '4 of 4 videos used'


def test_paths_can_be_typed_as_they_are_shown():
  lines = closing.written('my runs/records', {'train': 0, 'test': 3})
  assert lines == [
    'my runs/records: 0 train and 3 test records',
    "judge them: python -m preprocessing.audit '--records=my runs/records' "
    "'--output=my runs/records_audit'",
  ]


def test_layouts_that_pictures_do_not_confirm_are_named():
  def video(number, *, confirmed=False, records=9):
    return {
      'video_id': f'v{number}',
      'records': records,
      'projection': {'confirmed': confirmed},
    }

  sure = [video(8, confirmed=True), video(9, records=0)]
  assert closing.unconfirmed(sure) == []
  assert closing.unconfirmed([*sure, video(0), video(1)]) == [
    'layout of 2 videos rests on their tag or the flag alone: v0, v1 (look at '
    'them)'
  ]
  (line,) = closing.unconfirmed([video(number) for number in range(7)])
  assert line.startswith('layout of 7 videos ')
  assert line.endswith(': v0, v1, v2, v3, v4, ... (look at them)')
