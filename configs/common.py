"""Strict parser of the argument after the colon of `--config=FILE:ARGUMENT`.

An argument is a recipe's name and, after commas, `key=value` pairs:
`world`, `world,image_size_px=64`. What is not declared is an error.
"""

import ast
from typing import Any, Mapping, Sequence


def parse_argument(
  argument: str | None,
  *,
  recipes: Sequence[str],
  defaults: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
  """Splits a config argument into its recipe and its values.

  Args:
    argument: text after the colon; None or '' means the first recipe.
    recipes: allowed recipe names, the default first.
    defaults: every allowed key with its default; a given value must be of the
      default's type (an int is taken for a float).

  Returns:
    the recipe's name and all values, defaults included.

  Raises:
    ValueError: an unknown recipe or key, a value of the wrong type, or a pair
      that is not `key=value`; the message lists what is allowed.
  """
  recipe, *pairs = (argument or recipes[0]).split(',')
  if recipe not in recipes:
    raise ValueError(f'recipe {recipe!r} is none of {list(recipes)}')
  values = dict(defaults)
  for pair in pairs:
    key, equals, text = pair.partition('=')
    if not equals or key not in defaults:
      raise ValueError(
        f'config argument {pair!r}: expected key=value with a key of '
        f'{sorted(defaults)}'
      )
    values[key] = _typed(key, text, defaults[key])
  return recipe, values


def _typed(key: str, text: str, default: Any) -> Any:
  if isinstance(default, str):
    return text
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = None
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  if type(value) is not type(default):
    raise ValueError(
      f'config argument {key}={text}: expected a {type(default).__name__}'
    )
  return value
