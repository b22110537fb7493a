"""Generated data sets: scenes of digits and of shapes."""
