"""From conversations to input_ids and labels, and the checks that they are right."""
