"""Lists of ids: what is an id, what is none, and files that are no lists."""

import base64
import string

from hypothesis import given, settings
from hypothesis import strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from odin_jax.shared import errors
from preprocessing import ids

ID = 'dQw4w9WgXcQ'
OTHER = '-_abcDEF12k'
MALICIOUS = [
  '../../x',
  '../../../abc',
  '--exec=touch',
  '-oabc/../../',
  ';rm -rf ~',
  '$(reboot)AA',
  'dQw4w9WgXc\u0441',
  '\uff44Qw4w9WgXcQ',
  f'{ID}\n',
  f'{ID} ',
  f'{ID}\0',
  'dQw4w9WgXc',
  'dQw4w9WgXcQQ',
  'dQw4w9WgX%Q',
  '',
]


def write_parquet(path, values, name='id', kind=None, **options):
  table = pa.table({'title': ['t'] * len(values), name: pa.array(values, kind)})
  pq.write_table(table, path, **options)
  return path


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=8, max_size=8))
def test_every_64_bit_number_has_an_id(number):
  video_id = base64.urlsafe_b64encode(number).decode().rstrip('=')
  assert ids.check(video_id) == video_id


def test_the_last_character_has_four_bits():
  alphabet = string.ascii_letters + string.digits + '-_'
  good = set()
  for last in alphabet:
    try:
      good.add(ids.check(ID[:10] + last)[-1])
    except ValueError:
      continue
  assert good == set('AEIMQUYcgkosw048')


@pytest.mark.parametrize('text', MALICIOUS)
def test_nothing_else_is_an_id(text):
  with pytest.raises(ValueError, match='no YouTube id'):
    ids.check(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=14))
def test_what_is_accepted_is_safe_in_a_path_and_an_address(text):
  try:
    video_id = ids.check(text)
  except ValueError:
    return
  assert len(video_id) == 11 and video_id.isascii()
  assert not set(video_id) - set(string.ascii_letters + string.digits + '-_')


@pytest.mark.parametrize(
  'address',
  [
    'https://www.youtube.com/watch?v={}',
    'http://youtube.com/watch?feature=share&v={}&t=10s#top',
    'https://m.youtube.com/watch?v={}&list=PL0123456789',
    'https://music.youtube.com/watch?v={}',
    'https://youtu.be/{}?si=abc',
    'https://www.youtube.com/shorts/{}',
    'https://www.youtube.com/live/{}?feature=share',
    'https://www.youtube-nocookie.com/embed/{}',
  ],
)
def test_an_address_is_reduced_to_its_id(address):
  assert ids.check(address.format(OTHER)) == OTHER


@pytest.mark.parametrize(
  'address',
  [
    f'https://youtube.com.evil.org/watch?v={ID}',
    f'https://evil.org/?u=https://youtu.be/{ID}',
    f'file:///watch?v={ID}',
    'https://www.youtube.com/watch?v=../../x',
    'https://www.youtube.com/@channel',
    f'https://www.youtube.com/watch?v={ID}Q',
  ],
)
def test_other_addresses_are_no_ids(address):
  with pytest.raises(ValueError):
    ids.check(address)


def test_a_text_list(tmp_path):
  path = tmp_path / 'ids.txt'
  path.write_text(
    f'\ufeff# from the archive\n{ID}\n\n  {OTHER}  \r\n'
    f'https://youtu.be/{ID}\n../../x\n;rm\n../../x\n{OTHER}\n',
    encoding='utf-8',
  )
  listed = ids.read_ids(path)
  assert listed.valid == [ID, OTHER]
  assert listed.invalid == ['../../x', ';rm']


@pytest.mark.parametrize('kind', [pa.string(), pa.large_string()])
def test_a_parquet_list_in_many_groups_of_rows(tmp_path, kind):
  many = [f'{i:010d}A' for i in range(500)]
  path = write_parquet(
    tmp_path / 'list',
    [*many, None, 'bad', many[3]],
    kind=kind,
    row_group_size=7,
  )
  listed = ids.read_ids(path)
  assert listed.valid == many
  assert listed.invalid == ['', 'bad']


def test_a_dictionary_column_and_a_column_of_numbers(tmp_path):
  column = pa.array([ID, OTHER, ID]).dictionary_encode()
  path = tmp_path / 'ids.parquet'
  pq.write_table(pa.table({'id': column}), path)
  assert ids.read_ids(path).valid == [ID, OTHER]
  write_parquet(path, [1, 2])
  assert ids.read_ids(path) == ([], ['1', '2'])


def test_excluded_entries_are_stems_of_any_file(tmp_path):
  path = tmp_path / 'out.txt'
  path.write_text(f'# asked for\nWalk #3 in Rome\nhttps://youtu.be/{ID}\nöl\n')
  assert ids.read_excluded(path) == {'Walk #3 in Rome', ID, 'öl'}
  write_parquet(path, ['a', None, 'b c'])
  assert ids.read_excluded(path) == {'a', 'b c'}
  assert ids.read_excluded(None) == frozenset()


def test_dropped_ids_round_trip(tmp_path):
  names = {'#1', ' a ', 'b\r', ID, 'öl', '..'}
  assert ids.read_dropped(tmp_path) == frozenset()
  ids.write_dropped(tmp_path, names)
  assert ids.read_dropped(tmp_path) == names
  first = (tmp_path / 'dropped_ids.txt').read_bytes()
  ids.write_dropped(tmp_path, sorted(names, reverse=True))
  assert (tmp_path / 'dropped_ids.txt').read_bytes() == first


@pytest.mark.parametrize('read', [ids.read_ids, ids.read_excluded])
def test_files_that_are_no_lists_are_named(tmp_path, read):
  good = write_parquet(tmp_path / 'good.parquet', [ID] * 5000).read_bytes()
  middle = bytearray(good)
  footer = 8 + int.from_bytes(good[-8:-4], 'little')
  middle[4:-footer] = b'\xff' * (len(good) - footer - 4)
  bad = {
    'short.parquet': good[: len(good) // 2],
    'middle.parquet': bytes(middle),
    'empty.parquet': b'',
    'text.parquet': ID.encode(),
    'picture.txt': b'\x89PNG\xff\xfe\x00',
  }
  for name, content in bad.items():
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=name):
      read(path)
  with pytest.raises(errors.UserError, match='absent.txt'):
    read(tmp_path / 'absent.txt')
  path = write_parquet(tmp_path / 'named.parquet', [ID], name='video')
  with pytest.raises(errors.UserError, match='title, video'):
    read(path)


def test_an_excluded_entry_of_several_lines_is_refused(tmp_path):
  path = write_parquet(tmp_path / 'out.parquet', ['a\nb'])
  with pytest.raises(errors.UserError, match='several lines'):
    ids.read_excluded(path)
