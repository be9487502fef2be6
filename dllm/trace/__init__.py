"""Records of rows, step by step: made, kept in files, shown in a terminal and on a page."""
