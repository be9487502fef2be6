"""Speed beside the authors' own code, which runs in a process and an interpreter of its own."""
