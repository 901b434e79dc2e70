"""Training on a SLURM cluster: what a job needs, its script, its checks, its submission."""
