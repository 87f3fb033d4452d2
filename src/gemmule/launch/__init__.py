"""`gemmule launch`: scripts that start a run on many machines, for Slurm, SkyPilot or Kubeflow."""
