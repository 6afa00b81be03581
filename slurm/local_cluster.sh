#!/usr/bin/env bash
# A real Slurm of two nodes on this one machine, for development and tests:
#   slurm/local_cluster.sh up      start it, and print the line that makes sbatch, srun and squeue talk to it
#   slurm/local_cluster.sh down    stop it, with all its jobs
#   slurm/local_cluster.sh status  what runs
#   slurm/local_cluster.sh run COMMAND [ARGUMENT ...]   a cluster of its own, for as long as the command runs
# Needs root on Debian or Ubuntu; installs their packages slurm-wlm, munge and openmpi-bin when missing. Exit code 77 where
# there is no such thing. Everything lies in $FEDHPC_SLURM_DIR (default /tmp/fedhpc-slurm); an installed Slurm is left
# alone, and clusters in several folders do not meet.
set -euo pipefail

CANNOT=77
ROOT_DIR=${FEDHPC_SLURM_DIR:-/tmp/fedhpc-slurm}
PACKAGES=(slurm-wlm munge openmpi-bin)
NODES=(node1 node2)
DAEMONS=(slurmctld slurmd-node1 slurmd-node2 munged)

cannot() {
  echo "local_cluster.sh: $1" >&2
  exit $CANNOT
}

failed() {
  echo "local_cluster.sh: $1; see $ROOT_DIR/log" >&2
  down
  exit 1
}

install_packages() {
  command -v slurmctld slurmd munged scontrol mpirun >/dev/null && return
  command -v apt-get >/dev/null || cannot "Slurm is not installed and there is no apt-get to get it with"
  echo "local_cluster.sh: installing ${PACKAGES[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  local log="$ROOT_DIR/apt-get.log"
  { apt-get update && apt-get install -y --no-install-recommends "${PACKAGES[@]}"; } >"$log" 2>&1 ||
    cannot "apt-get could not install ${PACKAGES[*]}; its output is in $log"
}

write_config() {
  # Ports of this folder: below the range from which the kernel hands out others.
  local base=$((10000 + $(printf %s "$ROOT_DIR" | cksum | cut -d' ' -f1) % 2000 * 10))
  local host memory
  host=$(hostname -s)
  memory=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  mkdir -p "$ROOT_DIR"/{state,spool,log,run}
  cat >"$ROOT_DIR/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$ROOT_DIR/state
SlurmdSpoolDir=$ROOT_DIR/spool/%n
SlurmctldPidFile=$ROOT_DIR/run/slurmctld.pid
SlurmdPidFile=$ROOT_DIR/run/slurmd-%n.pid
SlurmctldLogFile=$ROOT_DIR/log/slurmctld.log
SlurmdLogFile=$ROOT_DIR/log/slurmd-%n.log
# cred_expire also governs how long a requeued job waits before it may start again (120 s where it is not set).
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$ROOT_DIR/run/munge.socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,sched_min_interval=100000,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=300
InactiveLimit=0
KillWait=30
MinJobAge=3600
CONF
  local i
  for i in "${!NODES[@]}"; do
    echo "NodeName=${NODES[i]} NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 1 + i)) CPUs=4 RealMemory=$memory" \
      >>"$ROOT_DIR/slurm.conf"
  done
  cat >>"$ROOT_DIR/slurm.conf" <<CONF
PartitionName=debug Nodes=node1,node2 Default=YES MaxTime=60 DefaultTime=10 State=UP
PartitionName=short Nodes=node1,node2 MaxTime=5 DefaultTime=2 State=UP
CONF
}

running() { # a daemon of ours, by its pid file
  local pid
  pid=$(cat "$ROOT_DIR/run/$1.pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null
}

stop_daemon() {
  local pid tries=0
  pid=$(cat "$ROOT_DIR/run/$1.pid" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    tries=$((tries + 1))
    [ $tries -eq 100 ] && kill -9 "$pid" 2>/dev/null
    [ $tries -gt 150 ] && break
  done
  return 0
}

up() {
  [ "$(uname -s)" = Linux ] || cannot "a Slurm cluster needs Linux, this is $(uname -s)"
  [ "$(id -u)" -eq 0 ] || cannot "starting Slurm's daemons needs root (you are $(id -un)); tests against Slurm are left out"
  export SLURM_CONF=$ROOT_DIR/slurm.conf
  if [ -f "$SLURM_CONF" ] && running slurmctld && running slurmd-node1 && running slurmd-node2 && running munged; then
    echo "export SLURM_CONF=$SLURM_CONF"
    return
  fi
  mkdir -p "$ROOT_DIR"
  install_packages
  down
  rm -rf "${ROOT_DIR:?}"/{state,spool,log,run}
  write_config
  dd if=/dev/urandom of="$ROOT_DIR/munge.key" bs=1 count=128 status=none
  chmod 600 "$ROOT_DIR/munge.key"
  chmod 755 "$ROOT_DIR" "$ROOT_DIR/run"
  munged --force --key-file="$ROOT_DIR/munge.key" --socket="$ROOT_DIR/run/munge.socket" --pid-file="$ROOT_DIR/run/munged.pid" \
    --log-file="$ROOT_DIR/log/munged.log" --seed-file="$ROOT_DIR/munge.seed" 2>"$ROOT_DIR/log/munged.err" ||
    failed "munged did not start: $(tail -n 3 "$ROOT_DIR/log/munged.err")"
  slurmctld -c || failed "slurmctld did not start"
  local node
  for node in "${NODES[@]}"; do
    slurmd -N "$node" || failed "slurmd of $node did not start"
  done
  local tries=0
  until [ "$(sinfo --noheader --format=%T --Node --partition=debug 2>/dev/null | sort -u)" = idle ]; do
    sleep 0.2
    tries=$((tries + 1))
    [ $tries -lt 150 ] || failed "the nodes are not idle after 30 s: $(sinfo --noheader 2>&1)"
  done
  echo "export SLURM_CONF=$SLURM_CONF"
}

down() {
  [ -f "$ROOT_DIR/slurm.conf" ] || return 0
  export SLURM_CONF=$ROOT_DIR/slurm.conf
  if running slurmctld; then
    # Jobs first: tasks would outlive the daemons.
    timeout 20 scancel --signal=KILL --full --user=root 2>/dev/null || true
    timeout 20 scancel --user=root 2>/dev/null || true
    local tries=0
    while [ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ] && [ $tries -lt 50 ]; do
      sleep 0.2
      tries=$((tries + 1))
    done
  fi
  local daemon
  for daemon in "${DAEMONS[@]}"; do
    stop_daemon "$daemon"
  done
}

run() {
  ROOT_DIR=$(mktemp -d /tmp/fedhpc-slurm-XXXXXX)
  trap 'down; rm -rf "$ROOT_DIR"' EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT
  up >/dev/null
  local code=0
  "$@" || code=$?
  [ $code -eq 0 ] || tail -n 20 "$ROOT_DIR"/log/slurm*.log >&2
  return $code
}

case "${1:-}" in
  up) up ;;
  run) shift && run "$@" ;;
  down) down ;;
  status) SLURM_CONF=$ROOT_DIR/slurm.conf sinfo --Node --long && SLURM_CONF=$ROOT_DIR/slurm.conf squeue ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
