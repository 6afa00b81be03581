# Sourced by the batch scripts of this folder. Runs the ranks so that signals reach them, and queues the job again when
# they stopped at a checkpoint (exit code 75), or when a rank was lost (70) or killed: the run goes on by itself.
#
# PYTHON              the interpreter; default .venv/bin/python of the checkout
# FEDHPC_ROOT         the checkout; default the folder that sbatch was called in
# FEDHPC_RESTARTS     how often a job may be queued again; default 50
# FEDHPC_LOSSES       how often after a lost rank; default 3
# FEDHPC_WAIT_S       how long srun waits for the other ranks when one has ended; default 660, that is twice runtime.timeout_s

root=${FEDHPC_ROOT:-$SLURM_SUBMIT_DIR}
python=${PYTHON:-$root/.venv/bin/python}
if ! command -v "$python" >/dev/null; then
  echo "no $python; set PYTHON, or call sbatch in the checkout after \`make install\`" >&2
  exit 2
fi
# Not --kill-on-bad-exit: it would end the ranks that are about to say which one was lost, and why.
srun=(srun --wait="${FEDHPC_WAIT_S:-660}" --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")

run_ranks() { # COMMAND [ARGUMENT ...]
  local ranks code
  trap 'kill -USR2 "$ranks" 2>/dev/null' USR2 TERM # srun and mpirun pass it on to the ranks
  "$@" &
  ranks=$!
  while true; do
    wait "$ranks"
    code=$?
    kill -0 "$ranks" 2>/dev/null || break # else a signal ended the waiting, not the ranks
  done
  case $code in
    75) queue_again 75 "stopped at a checkpoint" "${FEDHPC_RESTARTS:-50}" ;;
    70 | 1[2-9][0-9] | 2[0-9][0-9]) queue_again "$code" "lost a rank" "${FEDHPC_LOSSES:-3}" ;;
  esac
  exit "$code"
}

queue_again() { # EXIT_CODE WHAT LIMIT
  local job=$SLURM_JOB_ID state out before
  [ -n "${SLURM_ARRAY_JOB_ID:-}" ] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # this task of the array only
  state=$(scontrol show job --oneliner "$job")
  out=$(sed -n 's/.* StdOut=\([^ ]*\).*/\1/p' <<<"$state")
  before=$(grep -c "^job $job $2" "$out" 2>/dev/null) # the output is appended to at every start
  case $state in
    *" JobState=RUNNING "* | *" JobState=COMPLETING Reason=TimeLimit "*) ;;
    *) # scontrol would wake up a cancelled job too
      echo "job $job ends with exit code $1: it was cancelled, or Slurm queues it again by itself" >&2
      return
      ;;
  esac
  if [ "${before:-0}" -ge "$3" ]; then
    echo "job $job ends with exit code $1: it $2, and was queued again $before times already (see slurm/common.sh)" >&2
    return
  fi
  echo "job $job $2 (exit code $1) and is queued again"
  scontrol requeue "$job" && sleep 60 # until Slurm ends this script
}
