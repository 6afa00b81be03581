"""Many runs, started elsewhere: submitted to Slurm, swept over, watched and collected. Modules import no torch."""
