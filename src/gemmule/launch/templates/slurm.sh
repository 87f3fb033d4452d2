#!/bin/bash
# gemmule on {{ nodes }} x {{ nproc }} processes under Slurm. Start it with: sbatch FILE
#SBATCH --job-name={{ job }}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node=1
{% if gpu %}
#SBATCH --gpus-per-node={{ "" if gpu == "any" else gpu ~ ":" }}{{ nproc }}
{% endif %}
{% if cpus %}
#SBATCH --cpus-per-task={{ cpus }}
{% endif %}
{% if memory %}
#SBATCH --mem={{ memory }}G
{% endif %}
{% if hours %}
#SBATCH --time={{ (hours * 60) | round(0, "ceil") | int }}
{% endif %}
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{{ notice }}
{% for option in options %}
#SBATCH --{{ option }}
{% endfor %}

# {{ notice }} s before the time limit this shell gets USR1: the ranks are asked to save and stop, and the
# job is queued again. scancel asks them, because srun turns a TERM into a KILL of its tasks.
# Preempted or canceled, the ranks get a TERM from Slurm, and its KillWait to save.
again= interrupted=yes
trap 'interrupted=yes again=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap 'interrupted=yes' TERM
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={{ notice - 20 }}

{% if setup %}
{{ setup }}
{% endif %}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=0 torchrun --nnodes={{ nodes }} --nproc-per-node={{ nproc }} \
  --rdzv-backend=c10d --rdzv-endpoint="$head:{{ port }}" \
  --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" -m gemmule {{ words }} &
while [ -n "$interrupted" ]; do  # by a signal, which ends `wait` before the ranks have ended
  interrupted=
  wait $!
  status=$?
done
if [ -n "$again" ] && [ $status -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
