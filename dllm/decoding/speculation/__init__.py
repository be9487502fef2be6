"""Schedule steps drafted ahead and verified in one pass, with the tokens of decoding without."""
