"""What an evaluation reads, what it makes of that, and what it leaves."""
