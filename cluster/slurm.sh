#!/usr/bin/env bash
# sbatch cluster/slurm.sh job.toml: the job on the nodes of one allocation. Ray starts on every node, the command runs on
# the first, and all of it ends with the command. After the time limit, scancel or preemption, submit it again: it resumes.
#SBATCH --job-name=inpaint-encode
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
set -euo pipefail
umask 077

config=$(realpath "${1:?usage: sbatch cluster/slurm.sh job.toml}")
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
# Other users share the network: no metrics, since reading them needs no token.
export RAY_enable_metrics_collection="${RAY_enable_metrics_collection:-0}"

# Other users share /tmp: Ray's folder of each node is below one that only this user can enter. Slurm sends SIGTERM to
# every process and SIGKILL 30 s later: what starts Ray ignores the first, so that the command can release the output.
start='trap "" TERM; RAY_TMPDIR=$(mktemp -d -p /tmp) && export RAY_TMPDIR && exec "$@"'
workers=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_PER_TASK))
srun --cpus-per-task="${SLURM_CPUS_PER_TASK}" bash -c "${start}" start ray symmetric-run \
  --address "${head}:6379" --min-nodes "${SLURM_JOB_NUM_NODES}" \
  --num-cpus "${SLURM_CPUS_PER_TASK}" --num-gpus "${SLURM_GPUS_PER_TASK}" --disable-usage-stats \
  -- inpaint-encode encode --config "${config}" --address "${head}:6379" --max-workers "${workers}"
