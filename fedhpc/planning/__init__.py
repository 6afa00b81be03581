"""What a run will cost on many ranks, before an allocation is spent on it: measured in small, then computed."""
