#!/usr/bin/env bash
# sbatch cluster/slurm.sh job.toml: the job on the nodes of one allocation; submit it again after the time limit, and it
# goes on. Ray starts on every node, the command runs on the first, and all of it ends with the command.
#SBATCH --job-name=inpaint-encode
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
set -euo pipefail

config=$(realpath "${1:?usage: sbatch cluster/slurm.sh job.toml}")
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

workers=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_PER_TASK))
srun --cpus-per-task="${SLURM_CPUS_PER_TASK}" ray symmetric-run \
  --address "${head}:6379" --min-nodes "${SLURM_JOB_NUM_NODES}" \
  --num-cpus "${SLURM_CPUS_PER_TASK}" --num-gpus "${SLURM_GPUS_PER_TASK}" --disable-usage-stats \
  -- inpaint-encode encode --config "${config}" --address "${head}:6379" --max-workers "${workers}"
