"""The embedded model: its data, its tokenizer, its training."""
