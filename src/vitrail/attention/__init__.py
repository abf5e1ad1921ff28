"""How attention is reached: one point of interception in unmodified models, and the visitors that stand at it."""
