"""The search for settings: which are raced, which leave, which are left."""
