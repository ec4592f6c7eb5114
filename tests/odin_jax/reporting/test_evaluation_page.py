"""What the page of an evaluation shows and says; how it looks is elsewhere."""

import base64
import json
import re

import cv2
import numpy as np

from odin_jax.reporting import evaluation_page, pair_cells
from tests.helpers import evaluations


def picture_of(uri):
  content = np.frombuffer(base64.b64decode(uri.partition(',')[2]), np.uint8)
  return cv2.imdecode(content, cv2.IMREAD_COLOR)


def test_the_verdict_follows_the_figures_and_the_pictures(tmp_path):
  content = evaluations.write(tmp_path, pairs=6, scenes=['a', 'b'])
  data = evaluation_page.gather(tmp_path, content)
  first, closer, unfinished = data['verdict']
  # 34.15, 16.09 and 22.11 dB.
  assert first['text'] == (
    'model: PSNR 24.12 dB, SSIM 0.092, LPIPS 0.217; 6 pairs of 2 scenes, '
    'protocol zeronvs_dtu.'
  )
  # Pictures are 5, 40 and 20 levels off, sources 30.
  assert 'itself, by PSNR, in 4 of 6 pairs.' in closer['text']
  assert closer['good'] and not unfinished['good']
  assert 'step 78 of 160' in unfinished['text']
  assert [row[0] for row in data['scores']] == ['', 'model']
  assert data['departures'] == [] and data['sources'] == []
  assert 'step 78 of 160' in data['made'] and '1.2 M param' in data['made']


def test_what_the_source_sees_is_told_where_it_is_known(tmp_path):
  content = evaluations.write(tmp_path, pairs=3, scenes=['a'])
  content['mean'] |= {
    'psnr_seen': 27.031,
    'psnr_unseen': None,
    'seen_share': 0.629,
  }
  told = evaluation_page.gather(tmp_path, content)['verdict'][1]['text']
  assert told == (
    'The source sees 63 % of what targets show: there PSNR is 27.03 dB, and – '
    'where it does not.'
  )


def test_published_figures_stand_beside_with_their_source(tmp_path):
  content = evaluations.write(tmp_path, pairs=3, scenes=['a'], has_facts=False)
  data = evaluation_page.gather(tmp_path, content)
  assert data['scores'][2] == ['Others (published)', '13.55', '0.469', '-']
  assert data['sources'] == ['Others: a paper.']
  assert 'not the table of zeronvs_dtu: 1 of' in data['verdict'][2]['text']
  assert data['verdict'][2]['good'] is False
  assert data['departures'] == ['image: size px: 400, 300; here 8, 8']
  content['protocol']['departures'][0]['here'] = {'absent': {'a': [0, 1]}}
  data = evaluation_page.gather(tmp_path, content)
  assert data['departures'][0].endswith('; here absent a 0, 1')
  # Nothing to choose by.
  assert data['filters'] == [] and data['scenes'] == []


def test_pairs_are_chosen_by_scene_gap_and_overlap(tmp_path):
  content = evaluations.write(tmp_path, pairs=6, scenes=['a', 'b'])
  scene, gap, overlap = evaluation_page.gather(tmp_path, content)['filters']
  assert scene['options'] == ['a', 'b']
  assert scene['labels'] == list('aaabbb')
  assert gap['options'] == ['1 s', '2 s', '5 s']
  assert gap['labels'] == ['1 s', '2 s', '5 s'] * 2
  assert overlap['options'] == ['25 to 50 %', '50 to 75 %', '75 % or more']
  # Of many times there are three ranges, each of about a third of the pairs.
  rows = [
    {'source_time_s': 0.0, 'target_time_s': -0.1 * index} for index in range(30)
  ]
  labels = pair_cells._gap_labels(rows)
  counts = [labels.count(label) for label in dict.fromkeys(labels)]
  assert len(counts) == 3 and all(9 <= count <= 11 for count in counts)


def test_errors_are_dark_where_there_are_none(tmp_path):
  content = evaluations.write(tmp_path, pairs=3, scenes=['a'])
  cells = evaluation_page.gather(tmp_path, content)['cells']
  assert np.all(picture_of(cells[1]['pictures']['predicted']) == 140)
  brightness = [picture_of(cell['pictures']['error']).mean() for cell in cells]
  assert brightness[0] < brightness[2] < brightness[1]
  same = np.full((2, 2, 3), 9, np.uint8)
  assert pair_cells.error_map(same, same).max() < 5
  assert pair_cells.error_map(same + 200, same).mean() > 180


def test_the_size_is_bounded_and_the_worst_and_the_best_are_there(tmp_path):
  count = 3 * pair_cells.MAX_PAIRS + 1
  content = evaluations.write(tmp_path, pairs=count, scenes=['a'])
  rows = content['pairs']
  for index, row in enumerate(rows):
    row['psnr'] = float((7 * index) % count)
  html = evaluation_page.render(tmp_path, content)
  data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
  assert data['count'] == count
  shown = data['orders'][0]['values']
  assert data['orders'][1]['values'] == [-value for value in shown]
  shown = sorted(shown)
  assert len(shown) == pair_cells.MAX_PAIRS
  assert shown[0] == 0 and shown[-1] == count - 1
  assert np.ptp(np.diff(shown)) <= 1
  # Nothing is loaded from elsewhere.
  assert not re.search(r'src="(?!data:)|https?://', html)


def test_large_pictures_are_made_smaller(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
  assert picture_of(pair_cells.uri(noise)).shape == (128, 128, 3)
  assert len(pair_cells.uri(noise)) < 30_000
