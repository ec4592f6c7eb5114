"""Posed pairs -> shards of records and all that describes them."""
