"""Plain parts everything else is built from; imports nothing of ours."""
