"""What surrounds a command's task: the environment, Hydra's jobs, and the exit code that an error leads to."""
