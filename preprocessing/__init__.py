"""360-degree videos to posed pairs of perspective views."""
