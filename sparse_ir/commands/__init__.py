"""Which commands are there? Each public function is one command of the shell."""
