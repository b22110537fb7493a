"""How soon a detector is good: AP against the time and the images it was trained with."""
