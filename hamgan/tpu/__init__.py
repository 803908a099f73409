"""Cloud TPUs: chips, plans of what a training takes on them, and their launch."""
