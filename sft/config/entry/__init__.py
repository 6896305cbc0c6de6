"""What surrounds a command's task: the environment, Hydra's jobs, and the exit codes of errors."""
