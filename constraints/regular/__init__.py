"""Regular languages: expressions, and the minimal automata over bytes that they are made into."""
