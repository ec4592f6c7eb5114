"""Many videos at a time: processes here, or a Ray cluster."""
