"""How good a model is, on which videos it errs, and what it says of others; in every engine alike."""
