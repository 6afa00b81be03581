"""Is this machine, or this job, fit for a run? What is wrong, and what to do about it."""
