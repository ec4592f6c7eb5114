"""What a training reads: folders of records, mixed, and what is left out."""
