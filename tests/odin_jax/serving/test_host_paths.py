"""Paths that are cut out of what others read."""

import sys

from odin_jax.serving import host_paths


def test_of_a_path_its_name_is_left(repository, tmp_path):
  folder = tmp_path / 'a b' / 'jobs'
  for text, left in (
    (f'{folder}/input.jpg: is damaged', 'input.jpg: is damaged'),
    (f'in {folder}', 'in the folder'),
    (f'{folder}.old, {folder}', 'jobs.old, the folder'),
    (f"[Errno 2] No such file: '{repository}/x/y.json'", "x/y.json'"),
    (f'process 7 ({sys.prefix}/bin/python)', 'process 7 (bin/python)'),
    ('/data/runs/t: no checkpoint here', 't: no checkpoint here'),
    ('~/runs/t and (/etc/passwd)', 't and (passwd)'),
    # What is no path stays.
    ('give 1/2, GB/s, and/or, a / b', 'give 1/2, GB/s, and/or, a / b'),
    ('frames/000.png at https://a.org/b', 'frames/000.png at https://a.org/b'),
  ):
    assert host_paths.cut(text, folder).endswith(left), text


def test_all_strings_of_json_are_cut():
  content = {'a': [{'b': '/x/y/z'}, 1, None, True], 'c': 'frames/0.png'}
  assert host_paths.cut_all(content) == {
    'a': [{'b': 'z'}, 1, None, True],
    'c': 'frames/0.png',
  }
