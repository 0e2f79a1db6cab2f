"""What is particular to each kind of checkpoint: how it is recognized, read, opened and saved."""
