"""By which code a page was made."""

import re

from odin_jax.shared import config_files, provenance


def test_without_git_or_outside_of_a_checkout_it_is_unknown(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(config_files, 'REPOSITORY', tmp_path)
  assert provenance.commit() == 'unknown'
  monkeypatch.setenv('PATH', str(tmp_path))
  assert provenance.line().endswith('commit unknown')


def test_a_checkout_has_its_commit_and_says_if_it_was_changed(
  monkeypatch, tmp_path
):
  answers = {
    'rev-parse --show-toplevel': str(tmp_path),
    'rev-parse --short=10 HEAD': '0123456789',
    'status --porcelain --untracked-files=no': '',
  }
  monkeypatch.setattr(config_files, 'REPOSITORY', tmp_path)
  monkeypatch.setattr(provenance, '_git', lambda *a: answers[' '.join(a)])
  assert re.fullmatch(
    r'Made \d{4}-\d\d-\d\d \d\d:\d\d UTC by code at commit 0123456789',
    provenance.line(),
  )
  answers['status --porcelain --untracked-files=no'] = ' M README.md'
  assert provenance.commit() == '0123456789 with changes'
  # A copy of the code inside another repository.
  answers['rev-parse --show-toplevel'] = str(tmp_path.parent)
  assert provenance.commit() == 'unknown'
