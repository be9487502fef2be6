"""Context-free languages as they are: whether gaps in a text can be filled, and how."""
