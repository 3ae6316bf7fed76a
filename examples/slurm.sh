#!/bin/bash
# A run on Slurm: a task for each GPU; pre-empted or out of time, it saves a checkpoint, queues again and goes on where it was.
#
#   sbatch examples/slurm.sh configs/imagenet/swin_t.yaml
#   sbatch --nodes=1 --time=2-00:00 examples/slurm.sh configs/imagenet/resnet18.yaml ns.weighting=none
#
# Submit it in the checkout, with data/ and runs/ on storage that all nodes share and Python's environment active.
#SBATCH --job-name=ns_data
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=10
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) OMP_NUM_THREADS=1

# 300 seconds before the time ends Slurm sends SIGUSR1 to every task; train.py saves after the step at hand and leaves with 75.
# Tasks do not end at the same moment: the others get five minutes from the first, to save or to draw the plots at the end.
srun --kill-on-bad-exit=0 --wait=300 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python train.py "$@"' train.py "$@"
status=$?
if [ "$status" = 75 ]; then
    echo "pre-empted: job $SLURM_JOB_ID queues again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
