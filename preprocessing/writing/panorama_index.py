"""The index of a folder of panoramas, from the records in their final order."""

import pathlib
from typing import Iterator, Mapping

from odin_jax.shared import panorama_index, panorama_schema, schema
from preprocessing.writing import shards


def write(
  output: pathlib.Path, records_of: Mapping[str, shards.SplitRecords]
) -> None:
  """Writes the index (`odin_jax.shared.panorama_index`) into a folder."""

  def decoded(records: shards.SplitRecords) -> Iterator[schema.Record]:
    return map(panorama_schema.PANORAMAS.decode, records)

  panorama_index.write(
    output / panorama_index.FILE,
    {split: decoded(records) for split, records in records_of.items()},
  )
