"""What builds the documentation: the course's chapters run, code is pulled from the source, reference tables are made."""
