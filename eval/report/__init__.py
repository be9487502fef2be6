"""What runs came to: figures, standings, tables, plots, a page of replays."""
