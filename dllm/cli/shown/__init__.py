"""What commands show: progress, tables, replays, the catalogue of methods."""
