"""What runs a step: the loop, waiting prompts, prompts' memory, verified drafts."""
