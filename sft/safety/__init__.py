"""Security-relevant code: what a config may name, limits for templates and files, and secrets in outputs."""
