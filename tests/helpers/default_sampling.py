"""How a model is sampled where nothing else is asked: configs/evaluate.py."""

import dataclasses

from configs import evaluate
from odin_jax import predictors

_PROTOCOL = evaluate.get_config()


def sampling(**changes) -> predictors.Sampling:
  names = [field.name for field in dataclasses.fields(predictors.Sampling)]
  protocol = {name: _PROTOCOL[name] for name in names}
  return predictors.Sampling(**{**protocol, **changes})


def load_model(
  workdir, *, ema=_PROTOCOL.ema, step=None, **changes
) -> predictors.Model:
  return predictors.load_model(
    workdir,
    sampling=sampling(**changes),
    batch_size=_PROTOCOL.batch_size,
    ema=ema,
    step=step,
  )
