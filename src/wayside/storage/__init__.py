"""Where records live: one file, or one package, for each engine."""
