"""Pure tensor functions: each mechanism's reference in float64 and the form that runs by default."""
