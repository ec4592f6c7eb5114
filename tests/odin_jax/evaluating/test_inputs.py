"""What an evaluation refuses before it predicts."""

import types

import pytest

from configs import evaluate
from odin_jax import predictors
from odin_jax.evaluating import inputs
from odin_jax.shared import errors


# Stand-ins for what types would ask for: functions are called without checks.
def a_config(**changes):
  return {**evaluate.get_config().to_dict(), 'image_size_px': 64, **changes}


def test_fewer_sources_than_none_are_refused():
  inputs.check(a_config(num_sources=2))
  with pytest.raises(errors.UserError, match='num_sources=-1'):
    inputs.check(a_config(num_sources=-1))


@pytest.mark.parametrize('takes', [1, 2])
def test_a_model_of_one_source_is_not_scored_as_one_of_several(
  monkeypatch, tmp_path, takes
):
  model = types.SimpleNamespace(image_size_px=64, num_sources=takes)
  monkeypatch.setattr(predictors, 'load_model', lambda *a, **k: model)
  asked = types.SimpleNamespace(
    workdir=str(tmp_path),
    config=a_config(num_sources=2),
    checkpoint_step=None,
    table=types.SimpleNamespace(benchmark='records'),
  )
  if takes == 2:
    assert inputs._load_model.__wrapped__(asked) is model
    return
  with pytest.raises(errors.UserError, match='takes one source'):
    inputs._load_model.__wrapped__(asked)
