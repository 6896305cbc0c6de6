"""What a reviewer reads: which code a config may name, what a template and a file may use up, and no secret in any output."""
