"""Experiment trackers: one small interface over wandb, tensorboard, mlflow and trackio."""
