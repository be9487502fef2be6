"""Two ways of decoding, side by side: runs, exact and cached passes, verified and plain."""
