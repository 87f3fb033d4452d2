#!/bin/bash
# One phase of a gemmule recipe: sbatch --array=0-N FILE PHASE TASKS
#SBATCH --job-name=gemmule-data
#SBATCH --output={{ log }}
#SBATCH --open-mode=append
#SBATCH --requeue
{% for option in options %}
#SBATCH --{{ option }}
{% endfor %}

# A task that is killed or queued again goes on where it stopped.
cd {{ folder }} || exit 1
export PYTHONPATH={{ path }}
exec {{ python }} -P -m gemmule.data.recipe.task {{ out }} \
  "$1" "${SLURM_ARRAY_TASK_ID:-0}" "$2" --workers "${SLURM_CPUS_PER_TASK:-1}"
