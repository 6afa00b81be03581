"""How a process says what became of it. Batch scripts go by these; README.md has them as a table."""

EXIT_USER_ERROR = 2
EXIT_RANK_LOST = (
    70  # EX_SOFTWARE: a rank died or went silent; the run goes on from its last checkpoint when started again
)
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: stopped at a checkpoint; run the same command again
