"""Several predictors of the same pairs: figures, differences, page."""

import pytest

from odin_jax.benchmarks import tables
from odin_jax.evaluating import joint
from odin_jax.reporting import joint_page
from tests.helpers import evaluations

SCENES = ['a', 'b', 'c']


def joint_of(folder, names=('model', 'copy', 'other'), **options):
  options = {'pairs': 6, 'scenes': SCENES, **options}
  return evaluations.write_joint(folder, list(names), **options)


def test_a_constant_difference_is_certain_however_scenes_vary(tmp_path):
  content = joint_of(tmp_path)
  for place, name in enumerate(['copy', 'other'], 1):
    difference = content['predictors'][name]['difference_to_first']
    assert difference['mean']['psnr'] == pytest.approx(place)
    assert difference['interval_95']['psnr'] == pytest.approx([place] * 2)
    assert difference['mean']['lpips'] == pytest.approx(0)
  assert 'difference_to_first' not in content['predictors']['model']


def test_of_one_scene_a_difference_has_no_interval_nor_what_is_not_known(
  tmp_path,
):
  content = joint_of(tmp_path, scenes=['a'], has_facts=False)
  difference = content['predictors']['copy']['difference_to_first']
  assert difference['interval_95'] == dict.fromkeys(['psnr', 'ssim', 'lpips'])
  assert difference['mean']['lpips'] is None
  data = joint_page.gather(tmp_path, content)
  assert data['verdict'][1]['text'] == 'copy is 1.00 dB above model.'
  # Once, though each says so.
  assert len(content['protocol']['departures']) == 1
  assert 'not the table of zeronvs_dtu' in data['verdict'][-1]['text']


def test_whose_departure_it_is_is_said_where_it_is_not_of_all(tmp_path):
  of_all = {'line': 'image.crop', 'published': 'none', 'here': 'square'}
  of_one = {'line': 'sampling.steps', 'published': 10, 'here': 1}
  protocols = {
    'model': {'departures': [of_all]},
    'model_mean': {'departures': [of_all, of_one]},
  }
  rows = joint._departures(protocols)
  assert rows == [of_all, {**of_one, 'of': ['model_mean']}]
  content = joint_of(tmp_path)
  content['protocol']['departures'] = rows
  assert 'in image.crop, sampling.steps (model_mean) (' in tables.markdown(
    content
  )
  data = joint_page.gather(tmp_path, content)
  assert data['departures'][1] == ('sampling: steps: 10; here 1 (model_mean)')


def test_what_is_common_is_said_once(tmp_path):
  content = joint_of(tmp_path)
  assert content['protocol']['table']['name'] == 'zeronvs_dtu'
  assert content['protocol']['config'] == {'image_size_px': evaluations.SIDE_PX}
  for name, figures in content['predictors'].items():
    own = {'predictor': name, 'only': name, 'config': {}}
    assert figures['protocol'] == own
  assert list(content['scenes']['a']) == ['model', 'copy', 'other']
  assert content['pairs'][3]['files'] == {
    'source': 'model/pairs/003_source.png',
    'truth': 'model/pairs/003_truth.png',
    'samples': {
      name: f'{name}/pairs/003_sample.png'
      for name in ('model', 'copy', 'other')
    },
  }


def test_all_rows_and_their_differences_are_in_the_table(tmp_path):
  rows = tables.text_rows(joint_of(tmp_path))
  assert [row[0] for row in rows] == [
    '',
    'model',
    'copy',
    'other',
    'copy minus model',
    'other minus model',
  ]
  assert rows[4][1] == '+1.00 (+1.00 to +1.00)'
  assert tables.latex(joint_of(tmp_path)).count(r'\\') == 6


def test_the_page_shows_the_views_of_all(tmp_path):
  content = joint_of(tmp_path)
  # Whether another is ahead is another question in each pair.
  for index, row in enumerate(content['pairs']):
    row['scores']['other']['psnr'] = row['scores']['model']['psnr'] - index
  data = joint_page.gather(tmp_path, content)
  assert 'other has the highest PSNR' in data['verdict'][0]['text']
  cell = data['cells'][1]
  assert [words.split()[0] for words in cell['pictures']] == [
    'given',
    'true',
    'model',
    'copy',
    'other',
  ]
  assert cell['figure'] == 'Pair 1'
  orders = {order['words']: order['values'] for order in data['orders']}
  assert orders['other most behind model'] == pytest.approx(
    [0, -1, -2, -3, -4, -5]
  )
  assert data['scenes'][0] == ['scene, PSNR in dB', 'model', 'copy', 'other']
  html = joint_page.render(tmp_path, content)
  assert 'model/index.html' not in html
  (tmp_path / 'model' / 'index.html').write_text('')
  assert 'href="model/index.html"' in joint_page.render(tmp_path, content)


def test_a_difference_that_may_be_none_is_said_to_be_so(tmp_path):
  content = joint_of(tmp_path)
  difference = content['predictors']['copy']['difference_to_first']
  difference['mean']['psnr'] = -0.2
  difference['interval_95']['psnr'] = [-0.5, 0.1]
  data = joint_page.gather(tmp_path, content)
  assert data['verdict'][1]['text'] == (
    'copy is 0.20 dB below model (-0.50 to +0.10), which may be chance.'
  )
