"""Tables of figures, for a README and for a paper."""

from odin_jax.benchmarks import tables

CONTENT = {
  'protocol': {
    'predictor': 'model',
    'shuffle_poses': True,
    'table': {
      'name': 'zeronvs_dtu',
      'published': {'Zero_NVS': {'psnr': 13.552, 'ssim': 0.4689}},
    },
    'departures': [{'line': 'scenes'}, {'line': 'image.crop'}],
  },
  'mean': {'psnr': 18.034, 'ssim': 0.31, 'lpips': None},
  'interval_95': {'psnr': [17.0, 19.5], 'ssim': [0.3, 0.325], 'lpips': None},
  'mean_of_4': {
    'mean': {'psnr': 19.0, 'ssim': 0.4, 'lpips': 0.1},
    'interval_95': {'psnr': None, 'ssim': None, 'lpips': None},
  },
  'searched': {
    'factors': [0.5, 1.0],
    'mean': {'psnr': 18.5, 'ssim': 0.33, 'lpips': None},
  },
  'scenes': {'a': {}, 'b': {}},
  'pairs': [{}] * 7,
}


def test_markdown_has_a_row_for_all_that_was_scored():
  assert tables.markdown(CONTENT).splitlines() == [
    '| | PSNR dB | SSIM | LPIPS |',
    '|---|---|---|---|',
    '| model, poses shuffled | 18.03 (17.00 to 19.50) | '
    '0.310 (0.300 to 0.325) | - |',
    '| model, poses shuffled, mean of 4 | 19.00 | 0.400 | 0.100 |',
    '| model, poses shuffled, best of 2 scales | 18.50 | 0.330 | - |',
    '| Zero_NVS (published) | 13.55 | 0.469 | - |',
    '',
    '7 pairs of 2 scenes, protocol zeronvs_dtu; 95 % intervals over scenes. '
    'Not that table: it differs in scenes, image.crop (metrics.json, '
    'departures).',
  ]


def test_latex_has_the_same_rows():
  lines = tables.latex(CONTENT).splitlines()
  assert lines[0] == r'\begin{tabular}{lrrr}'
  assert lines[5] == r'Zero\_NVS (published) & 13.55 & 0.469 & - \\'
  assert lines[6] == r'\end{tabular}' and lines[7].startswith('% 7 pairs')
  assert len(lines) == 8


def test_what_the_source_sees_has_columns_where_it_is_known():
  content = {
    **CONTENT,
    'mean': {**CONTENT['mean'], 'psnr_seen': 27.034, 'psnr_unseen': 15.4},
    'interval_95': {**CONTENT['interval_95'], 'psnr_seen': [25.0, 28.5]},
  }
  head, line, row, *_ = tables.markdown(content).splitlines()
  assert head == (
    '| | PSNR dB | SSIM | LPIPS | PSNR dB, seen | PSNR dB, unseen |'
  )
  assert line == '|---|---|---|---|---|---|'
  assert row.endswith('| - | 27.03 (25.00 to 28.50) | 15.40 |')
  assert tables.latex(content).startswith(r'\begin{tabular}{lrrrrr}')


def test_scores_of_sets_have_columns_in_the_tables_of_one_and_of_several():
  measured = {'fid': 123.456, 'kid': 0.012345, 'kid_std': 0.00123}
  metrics = {'metrics': {'features': 'inception.py:features'}}
  protocol = {**CONTENT['protocol'], **metrics}
  one = {**CONTENT, **measured, 'protocol': protocol}
  several = {
    'protocol': protocol,
    'predictors': {
      'model': one,
      'copy': {**one, 'fid': 7.0, 'difference_to_first': CONTENT},
    },
    'scenes': CONTENT['scenes'],
    'pairs': CONTENT['pairs'],
  }
  head, *rows = tables.text_rows(several)
  assert head[-2:] == ['FID', 'KID']
  ends = {row[0]: row[-2:] for row in rows}
  assert ends['model, poses shuffled'] == ['123.5', '0.0123']
  assert ends['copy, poses shuffled'] == ['7', '0.0123']
  # Neither is a mean over pairs, of which there are differences.
  assert ends['copy minus model'] == ends['Zero_NVS (published)'] == ['-', '-']
  assert tables.text_rows(one)[1][-2:] == ['123.5', '0.0123']
  for content in (one, several):
    text = tables.markdown(content)
    assert 'FID and KID by inception.py:features.' in text
  assert tables.distribution(one) == 'FID 123.5, KID 0.0123 +- 0.001'
  assert tables.distribution(CONTENT) == tables.features(CONTENT) == ''
